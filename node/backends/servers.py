"""What answers requests for a backend: servers that speak some provider's API over HTTP.

1. A server is asked under the name that it has for a model; it knows nothing of ours.
2. What an OpenAI-compatible server does not understand is learned from its own refusal, once, and left out from then on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from mesh.errors import BadRequest
from mesh.openai.remote.client import refused_name

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.messages.inference import InferenceRequest
    from mesh.openai.remote.client import RemoteClient, RemoteModel
    from mesh.service import Emit


class Server(Protocol):
    """Answers requests; each call ends by itself or by being cancelled, and raises MeshError."""

    tasks: list[str]
    protocol: str

    async def models(self) -> list[RemoteModel]:
        """What it serves. No time limit of its own."""
        ...

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request, as `mesh.service` rules."""
        ...

    async def post(self, path: str) -> None:
        """Ask it to do something about itself."""
        ...

    async def aclose(self) -> None:
        """Close its connections."""
        ...


class OpenAIServer:
    """A server that speaks OpenAI's API."""

    protocol = "openai"

    def __init__(self, url: str, client: RemoteClient, tasks: Sequence[str] = ()) -> None:
        """`url` with or without the final `/v1`; no `tasks` are chat and completion."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.tasks = list(tasks) or ["chat", "completion"]
        self._client = client
        self._avoid: set[str] = set()

    async def models(self) -> list[RemoteModel]:
        """Its list."""
        return await self._client.models(self.url)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request, again without what the server refuses to understand."""
        # Each turn learns a name, and a refusal comes before anything is emitted.
        while True:
            try:
                await self._client.infer(self.url, request, emit, avoid=self._avoid)
            except BadRequest as error:
                name = refused_name(error)
                if name is None or name in self._avoid:
                    raise
                self._avoid = {*self._avoid, name}
            else:
                return

    async def post(self, path: str) -> None:
        """POST to a path of it."""
        await self._client.post(self.url + path)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()
