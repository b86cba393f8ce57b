"""One WebSocket. `websockets` knows the protocol; here are its bounds and its life.

1. Text and binary messages up to `message_bytes` come in (more: 1009); text goes out.
2. When the client closes, breaks the protocol or goes away, the handler is cancelled.
3. When the server stops, `receive` ends while `send` still works: the handler finishes what it owes and returns, then 1001.
4. What a slow client has not read is bounded (1013), and so is what a slow handler has not received (reading pauses).
5. Every close is a handshake of at most `close_seconds`.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

import trio
from websockets.datastructures import Headers
from websockets.exceptions import InvalidUpgrade
from websockets.frames import CloseCode, Frame, Opcode
from websockets.http11 import Request as HandshakeRequest
from websockets.protocol import State
from websockets.server import ServerProtocol

from mesh.errors import BadRequest
from mesh.http.errors import public_error
from mesh.http.origin import check_websocket_origin

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.http.limits import Limits
    from mesh.http.message import Request
    from mesh.http.output import Output

LOGGER = logging.getLogger(__name__)
_PROTOCOL_LOGGER = logging.getLogger(f"{__name__}.protocol")
_PROTOCOL_LOGGER.setLevel(logging.WARNING)  # it tells the opening and closing of every socket at INFO

WAITING_MESSAGES = 64
"""Messages that wait for `receive` before reading pauses; their size together is bounded by `message_bytes` too."""
_REASON_BYTES = 120


def handshake(request: Request) -> bytes:
    """The bytes that accept the upgrade. Raises BadRequest (426 when none was asked for) or Denied."""
    check_websocket_origin(request)
    protocol = ServerProtocol(logger=_PROTOCOL_LOGGER)
    response = protocol.accept(HandshakeRequest(request.target or request.path, Headers(request.headers), request.method))
    if protocol.handshake_exc is None:
        return response.serialize()
    if isinstance(protocol.handshake_exc, InvalidUpgrade):
        raise BadRequest("this is a WebSocket; connect with a WebSocket client (ws://)", status=426, code="upgrade_required")
    raise BadRequest(
        f"the WebSocket handshake is wrong: {protocol.handshake_exc}", status=response.status_code, code="bad_handshake"
    )


class WebSocket:
    """One open WebSocket, for its handler. Several tasks may send; one receives."""

    def __init__(self, output: Output, *, limits: Limits, on_room: Callable[[], None]) -> None:
        self._output = output
        self._limits = limits
        self._on_room = on_room
        self._protocol = ServerProtocol(state=State.OPEN, max_size=limits.message_bytes, logger=_PROTOCOL_LOGGER)
        self._handler = trio.CancelScope()
        self._messages: deque[str | bytes] = deque()
        self._waiting_bytes = 0
        self._partial = bytearray()
        self._partial_is_text = True
        self._arrived = trio.Event()
        self._ended = False
        self._stopping = False
        self._eof = trio.Event()
        """The protocol is done: nothing follows but the end of the TCP connection."""
        self._heard = trio.current_time()

    # For the handler.

    async def receive(self) -> str | bytes:
        """The next message. Blocks until there is one; raises trio.EndOfChannel after `close` and when the server stops.

        A handler may let that through: it then ends as if it had returned.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while not self._messages:
            if self._ended:
                raise trio.EndOfChannel
            self._arrived = trio.Event()
            await self._arrived.wait()
        message = self._messages.popleft()
        self._waiting_bytes -= len(message)
        self._on_room()
        await trio.lowlevel.cancel_shielded_checkpoint()
        return message

    def send(self, text: str) -> None:
        """Queue a text message. Never blocks; goes nowhere once the socket is closing."""
        if self._protocol.state is not State.OPEN:
            return
        self._protocol.send_text(text.encode())
        self._pass_on()
        self._bound()

    async def room(self) -> None:
        """Wait until the client's socket has taken all that was sent. A client that takes nothing is dropped in the end."""
        await self._output.flushed()

    async def close(self, code: int = CloseCode.NORMAL_CLOSURE, reason: str = "") -> None:
        """Say goodbye and wait for the client's answer, at most `close_seconds`."""
        self._say_close(code, reason)
        with trio.move_on_after(self._limits.close_seconds):
            await self._eof.wait()

    # For the connection.

    @property
    def is_full(self) -> bool:
        """Whether the handler is so far behind that reading should pause."""
        if self._ended:
            return False
        return len(self._messages) >= WAITING_MESSAGES or self._waiting_bytes > self._limits.message_bytes

    def feed(self, data: bytes) -> None:
        """Take what the client sent. Never raises."""
        self._heard = trio.current_time()
        if not data or self._eof.is_set():
            return
        self._protocol.receive_data(data)
        for frame in self._protocol.events_received():
            if isinstance(frame, Frame):
                self._take(frame)
        self._pass_on()
        self._bound()
        if self._protocol.state is not State.OPEN and not self._ended:
            self._handler.cancel()  # before the end is told, or a waiting `receive` would see that instead
            self._end()

    def stop(self) -> None:
        """Let the handler know that the server stops; see rule 3."""
        self._stopping = True
        self._end()

    async def run(self, handle: Callable[[WebSocket], Awaitable[None]]) -> None:
        """Run the handler to its end, then close."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_alive)
            code, reason = await self._handle(handle)
            nursery.cancel_scope.cancel()
        with trio.move_on_after(self._limits.close_seconds):
            self._say_close(code, reason)
            await self._eof.wait()
            await self._output.flushed()
            self._output.shutdown()
            await trio.sleep_forever()  # until the reader sees the client's end

    async def _handle(self, handle: Callable[[WebSocket], Awaitable[None]]) -> tuple[int, str]:
        try:
            with self._handler:
                await handle(self)
        except trio.EndOfChannel:
            pass  # a loop over `receive` ends like this
        except Exception as error:
            known = public_error(error)
            if known is not None:
                return CloseCode.POLICY_VIOLATION if known.status < 500 else CloseCode.INTERNAL_ERROR, known.message
            LOGGER.exception("the handler of a WebSocket failed")
            return CloseCode.INTERNAL_ERROR, "internal error"
        return (CloseCode.GOING_AWAY, "the server stops") if self._stopping else (CloseCode.NORMAL_CLOSURE, "")

    async def _keep_alive(self) -> None:
        await trio.sleep(self._limits.ping_seconds)
        while True:
            pinged = trio.current_time()
            if self._protocol.state is State.OPEN:
                self._protocol.send_ping(b"")
                self._pass_on()
            await trio.sleep(self._limits.ping_seconds)
            if self._heard < pinged:
                self._output.lose(f"did not answer a ping for {self._limits.ping_seconds:g} s")

    def _take(self, frame: Frame) -> None:
        if frame.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return
        if frame.opcode is not Opcode.CONT:
            self._partial_is_text = frame.opcode is Opcode.TEXT
        self._partial += frame.data
        if frame.fin:
            data, self._partial = bytes(self._partial), bytearray()
            self._deliver(data)

    def _deliver(self, data: bytes) -> None:
        if self._ended:
            return
        try:
            message = data.decode() if self._partial_is_text else data
        except UnicodeDecodeError:
            self._protocol.fail(CloseCode.INVALID_DATA, "a text message is not UTF-8")
            return
        self._messages.append(message)
        self._waiting_bytes += len(message)
        self._arrived.set()

    def _pass_on(self) -> None:
        """What the protocol wants to say goes to the client."""
        for data in self._protocol.data_to_send():
            if data:
                self._output.write(data)
            else:
                self._eof.set()

    def _bound(self) -> None:
        if self._output.pending > self._limits.buffered_bytes and self._protocol.state is State.OPEN:
            self._handler.cancel()
            self._say_close(CloseCode.TRY_AGAIN_LATER, "you read too slowly")

    def _say_close(self, code: int, reason: str) -> None:
        self._end()
        if self._protocol.state is State.OPEN:
            self._protocol.send_close(code, reason.encode()[:_REASON_BYTES].decode(errors="ignore"))
            self._pass_on()

    def _end(self) -> None:
        """Nothing more comes in."""
        self._ended = True
        self._arrived.set()
        self._on_room()
