"""Anthropic's Messages API as a server of a backend."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.backends.anthropic.answer import MessagesAnswer
from node.backends.anthropic.request import body_of

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from mesh.openai.remote.client import RemoteClient, RemoteModel
    from mesh.service import Emit

URL = "https://api.anthropic.com"
VERSION = "2023-06-01"


def secrets(key: str | None) -> dict[str, str]:
    """The headers of every request."""
    return {"anthropic-version": VERSION, **({"x-api-key": key} if key else {})}


class AnthropicServer:
    """A server that speaks it."""

    protocol = "anthropic"

    def __init__(self, url: str, client: RemoteClient) -> None:
        """`client` with the headers of `secrets`; `url` with or without the final `/v1`."""
        self.url = url.rstrip("/").removesuffix("/v1")
        self.tasks = ["chat"]
        self._client = client

    async def models(self) -> list[RemoteModel]:
        """Its list."""
        return await self._client.models(self.url)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request. Raises MeshError."""
        await self._client.exchange(f"{self.url}/v1/messages", body_of(request), MessagesAnswer(request, emit), emit)

    async def post(self, path: str) -> None:
        """POST to a path of it."""
        await self._client.post(self.url + path)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()
