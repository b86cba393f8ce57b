"""The node's side of the worker's socket: requests multiplexed by numbers that are never used twice.

1. One task reads and calls each request's `emit`; one task writes, everything pending at once. `infer` touches no socket.
2. A request that ends early (cancelled, or its `emit` raised) is aborted; whatever still arrives for its number is dropped.
3. What waits to be written is bounded by `MAX_UNSENT` bytes; a request that was never written is taken back, not aborted.
4. Once the other side is lost, every request raises the same error and no new one is taken.
"""

from __future__ import annotations

import itertools
import logging
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import BackendFailed, BadRequest, Busy, MeshError
from mesh.framing import MAX_FRAME, FrameError, FrameReader, frame
from mesh.messages.inference import Done, Event, Fail
from mesh.messages.worker import Abort, Doze, FromWorker, Step, Submit
from mesh.service import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit

MAX_UNSENT = 64 * 1024 * 1024
"""Bytes of requests that may wait for a worker that does not read."""
_CHUNK = 256 * 1024
_HEADROOM = 16
"""Bytes of a frame's array header, generously."""

logger = logging.getLogger(__name__)


class ProtocolBroken(Exception):
    """The worker sent something that is not a message of ours. It must be ended."""


class _Pending:
    """A request under way."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.ended = trio.Event()
        self.error: Exception | None = None

    def end(self, error: Exception | None = None) -> None:
        self.error = error
        self.ended.set()


class Conversation:
    """Everything said between this node and one life of its worker."""

    def __init__(self, stream: trio.abc.Stream, on_message: Callable[[FromWorker], None]) -> None:
        """`on_message` hears every message, a step's load included; it must not raise."""
        self._stream = stream
        self._on_message = on_message
        self._pending: dict[int, _Pending] = {}
        self._unsent: dict[int, bytes] = {}
        self._aborts: list[int] = []
        self._orders: list[Doze] = []
        self._unsent_size = 0
        self._work = trio.Event()
        self._numbers = itertools.count(1)
        self._lost: MeshError | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[FromWorker])

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return len(self._pending)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request. Raises BackendFailed when the worker dies first, Busy when too much is unsent."""
        number = next(self._numbers)
        pending = self._submit(number, request, emit)
        try:
            await pending.ended.wait()
        finally:
            if self._pending.pop(number, None) is not None:
                self._abort(number)
        if pending.error is not None:
            raise pending.error

    def tell(self, order: Doze) -> bool:
        """Send something that is about no request; it goes before those that wait. False when the other side is lost."""
        if self._lost is not None:
            return False
        self._orders = [order]  # an older one that was never written counts no more
        self._work.set()
        return True

    async def read(self) -> None:
        """Hand out what the worker says until its end of file. Raises ProtocolBroken."""
        reader = FrameReader()
        while data := await self._receive():
            try:
                for body in reader.feed(data):
                    for message in self._decoder.decode(body):
                        self._hear(message)
            except (FrameError, msgspec.DecodeError) as error:
                raise ProtocolBroken(f"the worker broke the protocol: {error}") from error

    async def write(self) -> None:
        """Send what is queued until the worker is gone."""
        try:
            while True:
                await self._work.wait()
                self._work = trio.Event()
                while body := self._next_body():
                    await self._stream.send_all(frame(body))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return  # The reader sees the end as well, and tells.

    def lose(self, reason: str) -> None:
        """The worker is gone: end every request with BackendFailed. Never blocks."""
        self._lost = BackendFailed(reason, code="worker_died")
        pending, self._pending = self._pending, {}
        for request in pending.values():
            # One exception object per waiter: a shared one would collect all their tracebacks.
            request.end(BackendFailed(reason, code="worker_died"))

    def _submit(self, number: int, request: InferenceRequest, emit: Emit) -> _Pending:
        if self._lost is not None:
            raise BackendFailed(self._lost.message, code=self._lost.code)
        encoded = self._encoder.encode(Submit(number, request))
        if len(encoded) + _HEADROOM > MAX_FRAME:
            raise BadRequest(
                f"the request takes {len(encoded)} bytes, over the limit of {MAX_FRAME}; send a shorter prompt",
                status=413,
                code="request_too_large",
            )
        if self._unsent_size + len(encoded) > MAX_UNSENT:
            raise Busy("the model's worker is behind with reading requests; try again", retry_after=1)
        self._unsent[number] = encoded
        self._unsent_size += len(encoded)
        self._work.set()
        self._pending[number] = pending = _Pending(emit)
        return pending

    def _abort(self, number: int) -> None:
        unsent = self._unsent.pop(number, None)
        if unsent is not None:
            self._unsent_size -= len(unsent)
        elif self._lost is None:
            self._aborts.append(number)
            self._work.set()

    def _next_body(self) -> bytes | None:
        """The next frame's body: all aborts and an order first, then as many requests as fit."""
        messages = [msgspec.Raw(self._encoder.encode(Abort(number))) for number in self._aborts]
        messages += [msgspec.Raw(self._encoder.encode(order)) for order in self._orders]
        self._aborts.clear()
        self._orders.clear()
        size = sum(len(bytes(message)) for message in messages) + _HEADROOM
        while self._unsent:
            number, encoded = next(iter(self._unsent.items()))
            if messages and size + len(encoded) > MAX_FRAME:
                break
            del self._unsent[number]
            self._unsent_size -= len(encoded)
            size += len(encoded)
            messages.append(msgspec.Raw(encoded))
        return self._encoder.encode(messages) if messages else None

    async def _receive(self) -> bytes:
        try:
            return bytes(await self._stream.receive_some(_CHUNK))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    def _hear(self, message: FromWorker) -> None:
        self._on_message(message)
        if isinstance(message, Step):
            for number, event in message.events:
                pending = self._pending.get(number)
                if pending is not None:
                    self._deliver(number, pending, event)

    def _deliver(self, number: int, pending: _Pending, event: Event) -> None:
        if isinstance(event, Fail):
            del self._pending[number]
            pending.end(error_of(event))
            return
        try:
            pending.emit(event)
        except Exception as error:  # noqa: BLE001 - one client's broken queue must not end the reader that serves all
            logger.warning("a request's receiver failed: %r", error)
            # It stays pending, so that `infer` aborts it.
            pending.end(error)
            return
        if isinstance(event, Done):
            del self._pending[number]
            pending.end()
