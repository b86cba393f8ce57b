"""A carrier whose bytes travel in WebSocket messages, for listeners behind HTTP proxies (`/ws` addresses).

1. Message borders mean nothing: the payloads of binary messages, joined, are the bytes.
2. A message is at most `MAX_MESSAGE` bytes. Pings are answered; a close frame is the end of the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from libp2p.io.exceptions import ConnectionClosedError
from websockets.client import ClientProtocol
from websockets.exceptions import InvalidState
from websockets.frames import Frame, Opcode
from websockets.http11 import Request, Response
from websockets.protocol import State
from websockets.server import ServerProtocol
from websockets.uri import parse_uri

from mesh.transport.libp2p.carrier import Carrier

if TYPE_CHECKING:
    import trio

MAX_MESSAGE = 1024 * 1024
"""Bytes of one WebSocket message. A message of libp2p's encryption has at most 64 KiB."""

_PAYLOAD = (Opcode.BINARY, Opcode.CONT)


class WebSocketCarrier(Carrier):
    """Carries bytes once `connect` (dialling side) or `accept` (listening side) is through."""

    websocket = True

    def __init__(self, stream: trio.SocketStream) -> None:
        super().__init__(stream)
        self._protocol: ClientProtocol | ServerProtocol = ServerProtocol(max_size=MAX_MESSAGE)

    async def connect(self, host: str, port: int) -> None:
        """Ask for a WebSocket. Raises ConnectionClosedError when the other side does not agree."""
        authority = f"[{host}]" if ":" in host else host
        self._protocol = protocol = ClientProtocol(parse_uri(f"ws://{authority}:{port}/"), max_size=MAX_MESSAGE)
        protocol.send_request(protocol.connect())
        self._send_pending()
        await self._handshake(Response)
        if protocol.handshake_exc is not None:
            raise ConnectionClosedError("no WebSocket is offered there", transport="ws")

    async def accept(self) -> None:
        """Answer the request for a WebSocket. Raises ConnectionClosedError when it is none."""
        request = await self._handshake(Request)
        assert isinstance(request, Request)
        assert isinstance(self._protocol, ServerProtocol)
        self._protocol.send_response(self._protocol.accept(request))
        self._send_pending()
        if self._protocol.state is not State.OPEN:
            raise ConnectionClosedError("the request is not for a WebSocket", transport="ws")

    def decode(self, data: bytes) -> bytes:
        """The payloads in `data`; answers pings and closing on the way."""
        self._protocol.receive_data(data)
        self._send_pending()
        payloads = self._joined(self._protocol.events_received())
        if self._protocol.state is not State.OPEN:
            self.close_now()
        return payloads

    def encode(self, data: bytes) -> bytes:
        """One binary message."""
        try:
            self._protocol.send_binary(data)
        except InvalidState as error:
            raise ConnectionClosedError("the WebSocket is closed", transport="ws") from error
        return b"".join(self._protocol.data_to_send())

    async def _handshake(self, kind: type[Request | Response]) -> Request | Response:
        while True:
            data = await self._receive()
            if not data:
                raise ConnectionClosedError("the other side left during the WebSocket handshake", transport="ws")
            self._protocol.receive_data(data)
            events = self._protocol.events_received()
            if self._protocol.handshake_exc is not None:
                raise ConnectionClosedError("the WebSocket handshake failed", transport="ws")
            if events:
                first = events[0]
                assert isinstance(first, kind)
                self._received += self._joined(events[1:])
                return first

    @staticmethod
    def _joined(events: list[Request | Response | Frame]) -> bytes:
        return b"".join(event.data for event in events if isinstance(event, Frame) and event.opcode in _PAYLOAD)

    def _send_pending(self) -> None:
        data = b"".join(self._protocol.data_to_send())
        if data and not self.closed:
            self.send(data)
