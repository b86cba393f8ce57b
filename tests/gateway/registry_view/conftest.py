"""Foreign servers: a real one over HTTP, and one that is only a client double."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.registry_view.client import ForeignModel
from gateway.registry_view.foreign import ForeignServices
from gateway.registry_view.registration import Registration
from mesh.errors import MeshError
from mesh.http import Response, Router, serve
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.record import ModelEntry
from mesh.openai.routes import OpenAIRoutes

if TYPE_CHECKING:
    from collections.abc import Callable

DONE = Done("stop", Usage(11, 3), Performance(1.0, 2.0, 0.0, 100.0, 1))
TEXTS = ["one", " two", " three"]


@dataclass
class Server:
    """An OpenAI-compatible server on a real port, which knows nothing of meshes."""

    models: list[str]
    texts: list[str] = field(default_factory=lambda: list(TEXTS))
    gates: dict[int, trio.Event] = field(default_factory=dict)
    """Before the text of that index it waits."""
    error: MeshError | None = None
    requests: list[InferenceRequest] = field(default_factory=list)
    cancelled: trio.Event = field(default_factory=trio.Event)
    supervisor_status: int = 200
    port: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def router(self) -> Router:
        router = Router()
        OpenAIRoutes(self, lambda: [ModelEntry(id=model, created=7) for model in self.models]).mount(router)

        async def health(_request: Any) -> Response:
            return Response.json({}, self.supervisor_status)

        router.add("GET", "/health", health)
        return router

    async def infer(self, request: InferenceRequest, emit: Callable[[Any], None]) -> None:
        self.requests.append(request)
        if self.error:
            raise self.error
        emit(Accepted())
        try:
            for index, text in enumerate(self.texts):
                if index in self.gates:
                    await self.gates[index].wait()
                await trio.lowlevel.checkpoint()
                emit(Delta(index, [index], text))
        except trio.Cancelled:
            self.cancelled.set()
            raise
        emit(DONE)

    def body(self, name: str = "far", **more: Any) -> dict[str, Any]:
        return {"name": name, "host": "127.0.0.1", "port": self.port, "hostname": "far-away", "url": self.url, **more}


@pytest.fixture
def server(nursery):
    """Start a foreign server."""

    async def start(*models: str, router: Router | None = None, port: int = 0, **more: Any) -> Server:
        built = Server(list(models or ("far-model",)), **more)
        built.port = await nursery.start(partial(serve, router or built.router(), "127.0.0.1", port))
        return built

    return start


class Double:
    """A client whose servers are entries of `servers`, by base URL: what they say when asked."""

    def __init__(self) -> None:
        self.models_of: dict[str, list[str] | MeshError] = {}
        self.healthy_at: dict[str, bool | MeshError] = {}
        self.scripts: dict[str, list[Any]] = {}
        self.asked: list[str] = []
        self.slow: set[str] = set()

    async def models(self, base: str) -> list[ForeignModel]:
        self.asked.append(base)
        if base in self.slow:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        said = self.models_of.get(base, ["m"])
        if isinstance(said, MeshError):
            raise said
        return [ForeignModel(model) for model in said]

    async def healthy(self, url: str) -> bool:
        self.asked.append(url)
        await trio.lowlevel.checkpoint()
        said = self.healthy_at.get(url, True)
        if isinstance(said, MeshError):
            raise said
        return said

    async def infer(self, base: str, request: InferenceRequest, emit: Callable[[Any], None], *, plain: bool = False) -> None:
        self.asked.append(f"{base} plain" if plain else base)
        for step in self.scripts.get(base, [Accepted(), Delta(0, [], base), DONE]):
            await trio.lowlevel.checkpoint()
            if isinstance(step, MeshError):
                if not plain:
                    raise step
            elif isinstance(step, trio.Event):
                await step.wait()
            else:
                emit(step)

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()


@pytest.fixture
def double():
    return Double()


def registration(name: str = "far", **more: Any) -> Registration:
    host, port = more.pop("host", name), more.pop("port", 8000)
    values = {"name": name, "host": host, "port": port, "hostname": host, "url": f"http://{host}:{port}", "status": "running"}
    return Registration(**(values | more))


@pytest.fixture(name="registration")
def registration_fixture():
    return registration


@pytest.fixture
async def foreign(double, nursery):
    """Services behind the double, looked after."""
    services = ForeignServices(client=double)
    await nursery.start(services.run)
    return services


@pytest.fixture
def eventually():
    """Wait until an async condition holds."""

    async def wait(condition: Callable[[], Any]) -> None:
        with trio.fail_after(20):
            while not await condition():  # noqa: ASYNC110 - the conditions are of many kinds
                await trio.sleep(0.02)

    return wait


@pytest.fixture
def texts():
    return TEXTS


@pytest.fixture
def done():
    return DONE
