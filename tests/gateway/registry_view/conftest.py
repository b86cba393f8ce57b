"""Foreign servers: a real one over HTTP, and one that is only a client double."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import trio

from gateway.registry_view.foreign import ForeignServices
from gateway.registry_view.registration import Registration
from mesh.errors import MeshError
from mesh.http import Router, serve
from mesh.messages.inference import Accepted, Delta, InferenceRequest
from mesh.openai.remote.client import RemoteModel
from tests.openai_server import DONE, TEXTS, Server

if TYPE_CHECKING:
    from collections.abc import Callable


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

    async def models(self, base: str) -> list[RemoteModel]:
        self.asked.append(base)
        if base in self.slow:
            await trio.sleep_forever()
        await trio.lowlevel.checkpoint()
        said = self.models_of.get(base, ["m"])
        if isinstance(said, MeshError):
            raise said
        return [RemoteModel(model) for model in said]

    async def healthy(self, url: str) -> bool:
        self.asked.append(url)
        await trio.lowlevel.checkpoint()
        said = self.healthy_at.get(url, True)
        if isinstance(said, MeshError):
            raise said
        return said

    async def infer(self, base: str, request: InferenceRequest, emit: Callable[[Any], None], *, avoid: Any = ()) -> None:
        plain = "top_k" in avoid
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
