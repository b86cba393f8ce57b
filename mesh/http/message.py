"""What handlers take and give back.

1. A handler is cancelled when its client goes away, whatever it is doing.
2. A handler, or a `produce` before its first write, may raise a MeshError: the client gets the OpenAI error object.
3. After the first write an error can only end the connection: `produce` says what happened in its own format, then raises.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import trio.lowlevel

from mesh.messages.inference import ANONYMOUS

if TYPE_CHECKING:
    from mesh.http.websocket import WebSocket


@dataclass(slots=True)
class Request:
    """One request, complete. `path` is decoded; `client` is an IP address."""

    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    """By lower-case name; values of a repeated header are joined by a comma."""
    body: bytes = b""
    params: dict[str, str] = field(default_factory=dict)
    """The parts of the path that the route names in braces."""
    client: str = ""
    target: str = ""
    """The path as it was sent, percent signs and all; "" stands for `path`."""
    tenant: str = ANONYMOUS
    """The name of the API key that it came with."""


class Response:
    """A whole answer. The server adds length, date and connection headers."""

    def __init__(
        self,
        status: int = 200,
        body: bytes = b"",
        content_type: str = "application/json",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers or {}

    @classmethod
    def json(cls, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
        """An answer of anything that msgspec can encode."""
        return cls(status, msgspec.json.encode(value), headers=headers)


class StreamWriter:
    """The body of a streaming answer, as its producer sees it."""

    def __init__(
        self,
        send: Callable[[bytes], None],
        headers: dict[str, str] | None = None,
        flushed: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    ) -> None:
        self.headers = dict(headers or {})
        """Of the answer; changes count until the first write."""
        self._send = send
        self._flushed = flushed

    def write(self, data: bytes) -> None:
        """Queue bytes; they are sent at once when the client keeps up. Never blocks and never raises.

        A client that falls too far behind is dropped, which cancels `produce`; what is written after that goes nowhere.
        """
        if data:
            self._send(data)

    async def room(self) -> None:
        """Wait until the client's socket has taken all that was written. A client that takes nothing is dropped in the end."""
        await self._flushed()


Produce = Callable[[StreamWriter], Awaitable[None]]


class StreamingResponse:
    """An answer whose body `produce` writes bit by bit. Its head goes out with the first write."""

    def __init__(
        self,
        produce: Produce,
        content_type: str = "text/event-stream",
        headers: dict[str, str] | None = None,
    ) -> None:
        self.produce = produce
        self.content_type = content_type
        self.headers = headers or {}


class WebSocketResponse:
    """Turn the connection into a WebSocket that `handle` serves; it is closed when `handle` returns."""

    def __init__(self, handle: Callable[[WebSocket], Awaitable[None]]) -> None:
        self.handle = handle


AnyResponse = Response | StreamingResponse | WebSocketResponse
Handler = Callable[[Request], Awaitable[AnyResponse]]
