"""One client's connection, from accept to close.

1. One task reads, from the first byte to the last: so a client that goes away is noticed in any state and everything that runs
   for it is cancelled. A second task answers, one request after the other, in the order they came.
2. Reading ahead is bounded: while a request is answered, at most one more is taken in. Beyond that the socket is not read but
   asked every `HANGUP_SECONDS` whether the client hung up.
3. The client ends it by closing its sending side. We end it after an answer that says `connection: close`, after an error in the
   request's framing, and at once when the client reads nothing or the scope is cancelled.
4. After a refusal the rest of what the client sends is read and thrown away for a while: closing at once would reset the
   connection, and the client would never read why.
"""

from __future__ import annotations

import contextlib
import logging
import math
import select
import socket
import struct
from typing import TYPE_CHECKING

import trio

from mesh.errors import BadRequest, MeshError
from mesh.http.errors import INTERNAL, error_response, public_error
from mesh.http.exchange import Exchange
from mesh.http.message import Response, WebSocketResponse
from mesh.http.output import Output
from mesh.http.parser import Incoming, RequestParser
from mesh.http.websocket import WebSocket, handshake
from mesh.http.wire import CONTINUE

if TYPE_CHECKING:
    from mesh.http.limits import Limits
    from mesh.http.message import AnyResponse, StreamingResponse
    from mesh.http.router import Router

LOGGER = logging.getLogger(__name__)

HANGUP_SECONDS = 0.25
_READ_BYTES = 64 * 1024
_HANGUP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Connection:
    """See the head of this file. `stop` lets it finish what it is doing; cancelling `run` ends it at once."""

    def __init__(self, connection: socket.socket, client: str, *, router: Router, limits: Limits) -> None:
        self._socket = connection
        self._client = client
        self._router = router
        self._limits = limits
        self._parser = RequestParser(limits, client)
        self._scope = trio.CancelScope()
        self._patience = trio.CancelScope()
        self._busy = False
        self._refusing = False
        self._stopping = False
        self._websocket: WebSocket | None = None
        self._room = trio.Event()

    async def run(self) -> None:
        """Serve the client until either side ends it, then close the socket."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    self._nursery = nursery
                    self._output = Output(self._socket, nursery, stall_seconds=self._limits.stall_seconds, lost=self._on_lost)
                    await self._read()
        finally:
            self._socket.close()

    async def refuse(self, error: MeshError) -> None:
        """Tell the client `error` instead of reading its request, then close the socket."""
        self._parser.fail(error)
        await self.run()

    def stop(self) -> None:
        """End now when no request is under way, otherwise after its answer."""
        self._stopping = True
        if self._websocket is not None:
            self._websocket.stop()
        elif not self._busy and self._parser.phase != "body":
            self._scope.cancel()

    def _on_lost(self, reason: str) -> None:
        LOGGER.debug("client %s %s", self._client, reason)
        with contextlib.suppress(OSError):  # free what the kernel still holds for it
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._scope.cancel()

    # Reading.

    async def _read(self) -> None:
        with self._patience:
            self._be_patient()
            self._start_answering()
            await self._read_on()
        if self._parser.phase == "idle":
            self._scope.cancel()
            return
        self._parser.fail(self._too_slow())
        self._start_answering()
        await self._watch()

    def _too_slow(self) -> BadRequest:
        part, limit = "body", self._limits.body_seconds
        if self._parser.phase == "head":
            part, limit = "headers", self._limits.head_seconds
        return BadRequest(f"the {part} of the request took longer than {limit:g} s", status=408, code="request_timeout")

    async def _read_on(self) -> None:
        """Until `_patience` ends it, or the connection's scope."""
        while True:
            if self._is_ahead():
                await self._watch()
            await trio.lowlevel.wait_readable(self._socket)
            data = self._receive()
            if data == b"":
                self._scope.cancel()
            elif data is not None:
                self._take(data)

    def _receive(self) -> bytes | None:
        """b"" at the end, None when there was nothing after all."""
        try:
            return self._socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError:
            return b""

    def _take(self, data: bytes) -> None:
        if self._websocket is not None:
            self._websocket.feed(data)
            return
        before = self._parser.phase
        self._parser.feed(data)
        self._start_answering()
        if not self._busy and self._parser.phase != before:
            self._be_patient()

    def _is_ahead(self) -> bool:
        """Whether enough is read for now."""
        if self._websocket is not None:
            return self._websocket.is_full
        return self._parser.failed or (self._busy and bool(self._parser.requests)) or len(self._parser.rest) > _READ_BYTES

    async def _watch(self) -> None:
        """Wait until there is room to read again; meanwhile notice a client that hangs up."""
        while self._is_ahead():
            self._room = trio.Event()
            with trio.move_on_after(HANGUP_SECONDS):
                await self._room.wait()
            if not self._refusing and self._has_hung_up():
                self._scope.cancel()

    def _has_hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, _HANGUP)
        return bool(poll.poll(0))

    def _make_room(self) -> None:
        self._room.set()

    def _be_patient(self) -> None:
        """Give the client the time that its part of the work may take from now on."""
        if self._parser.wants_continue:
            self._parser.wants_continue = False
            self._output.write(CONTINUE)
        limits = self._limits
        seconds = {"idle": limits.idle_seconds, "head": limits.head_seconds, "body": limits.body_seconds}
        self._patience.deadline = trio.current_time() + seconds[self._parser.phase]

    # Answering.

    def _start_answering(self) -> None:
        if self._parser.requests and not self._busy:
            self._busy = True
            self._patience.deadline = math.inf
            self._nursery.start_soon(self._answer_all)

    async def _answer_all(self) -> None:
        while self._parser.requests:
            incoming = self._parser.requests.popleft()
            self._make_room()
            if not isinstance(incoming, Incoming):
                await self._turn_away(incoming)
                return
            keep_alive = await self._answer(incoming)
            await self._output.flushed()
            if not keep_alive or self._stopping:
                self._scope.cancel()
            await trio.lowlevel.checkpoint()
        self._busy = False
        self._make_room()
        self._be_patient()

    async def _turn_away(self, error: MeshError) -> None:
        """Answer a fault in the framing, after which nothing can be understood, and end the connection."""
        self._refusing = True
        self._exchange(None, keep_alive=False).send(error_response(error))
        await self._output.flushed()
        self._output.shutdown()
        with trio.move_on_after(self._limits.close_seconds):
            await self._discard()
        self._scope.cancel()

    async def _discard(self) -> None:
        left = self._limits.refused_bytes
        while left > 0:
            await trio.lowlevel.wait_readable(self._socket)
            data = self._receive()
            if data == b"":
                return
            left -= len(data or b"")

    async def _answer(self, incoming: Incoming) -> bool:
        """Answer one request; whether another one may follow."""
        response = await self._handle(incoming)
        if isinstance(response, WebSocketResponse):
            try:
                accepted = handshake(incoming.request)
            except MeshError as error:
                response = error_response(error, {"sec-websocket-version": "13"})
            else:
                await self._run_websocket(response, accepted)
                return False
        if self._parser.upgraded:
            self._parser.resume()
        exchange = self._exchange(incoming, keep_alive=incoming.keep_alive and not self._stopping)
        if isinstance(response, Response):
            exchange.send(response)
            return exchange.keep_alive
        return await self._stream(exchange, response, incoming)

    async def _handle(self, incoming: Incoming) -> AnyResponse:
        try:
            return await self._router.answer(incoming.request)
        except Exception as error:  # noqa: BLE001 - a broken handler costs its request, not the server
            return error_response(_public(error, incoming))

    async def _stream(self, exchange: Exchange, response: StreamingResponse, incoming: Incoming) -> bool:
        try:
            await exchange.stream(response)
        except Exception as error:  # noqa: BLE001 - as above
            public = _public(error, incoming)
            if exchange.started:
                return False
            exchange.send(error_response(public, exchange.writer.headers))
        return exchange.keep_alive

    async def _run_websocket(self, response: WebSocketResponse, accepted: bytes) -> None:
        self._output.write(accepted)
        self._websocket = WebSocket(self._output, limits=self._limits, on_room=self._make_room)
        self._make_room()
        if self._stopping:
            self._websocket.stop()
        self._websocket.feed(self._parser.take_rest())
        await self._websocket.run(response.handle)
        self._scope.cancel()  # its end was bounded; whatever is not sent by now will not be

    def _exchange(self, incoming: Incoming | None, *, keep_alive: bool) -> Exchange:
        return Exchange(self._output, incoming, keep_alive=keep_alive, buffered_bytes=self._limits.buffered_bytes)


def _public(error: Exception, incoming: Incoming) -> MeshError:
    """What the client may know of an error; the log gets the rest."""
    known = public_error(error)
    if known is not None:
        return known
    LOGGER.error("%s %s failed", incoming.request.method, incoming.request.path, exc_info=error)
    return INTERNAL
