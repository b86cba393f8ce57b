"""An OpenAI-compatible server for tests: real HTTP, made-up words."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from mesh.http import Response, Router
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.record import ModelEntry
from mesh.openai.routes import OpenAIRoutes

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.errors import MeshError

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
