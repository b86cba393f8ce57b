"""Requests that our side opened on a link.

1. A number is used once in the life of a link; events for a number that is not open any more are ignored.
2. Every `infer` ends: with `Done` or `Kept`, the other side's error, `link_lost`, or by cancellation, which sends `Cancel`.
3. A caller whose `emit` raises ends its own request and nothing else.
4. Where the other side keeps to credit, a request gets more only when its caller has room: what the caller does not read waits on
   the other side (`credit.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import BackendFailed, BadRequest, Busy, Unavailable
from mesh.link.codec import MAX_MESSAGE, encode
from mesh.link.credit import QUANTUM, WINDOW, cost
from mesh.link.pieces import PIECE
from mesh.messages.inference import Done, Event, Fail, Kept
from mesh.messages.link import Attach, Cancel, Credit, Open
from mesh.service import error_of, room

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.link.writer import LinkWriter
    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit

MAX_IN_FLIGHT = 256


@dataclass(slots=True)
class _Request:
    emit: Emit
    large: bool
    """Its `Open` travels with the large messages."""
    ended: bool = False
    error: Exception | None = None
    taken: int = 0
    """Bytes of its events that no credit was given back for."""
    news: trio.Event = field(default_factory=trio.Event)
    """It ended, or so much was taken that credit is due."""
    waiting: trio.CancelScope | None = None
    """While it waits for its caller to have room."""

    def end(self, error: Exception | None) -> None:
        self.ended = True
        self.error = error
        self.news.set()
        if self.waiting is not None:
            self.waiting.cancel()


class OpenedRequests:
    """The asking half of a link."""

    def __init__(self, writer: LinkWriter) -> None:
        self.credit = False
        """Whether the other side keeps to credit."""
        self._writer = writer
        self._requests: dict[int, _Request] = {}
        self._next = 1
        self._lost: Unavailable | None = None

    def __len__(self) -> int:
        return len(self._requests)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Ask the other side. Raises its MeshError, or Unavailable(code="link_lost")."""
        await self._ask(lambda number: Open(number, request), emit)

    async def attach(self, wanted: Attach, emit: Emit) -> None:
        """As `infer`, for a request that the other side has."""
        await self._ask(lambda number: msgspec.structs.replace(wanted, stream=number), emit)

    async def _ask(self, opening: Callable[[int], Open | Attach], emit: Emit) -> None:
        if self._lost is not None:
            raise self._fresh_loss()
        if len(self._requests) >= MAX_IN_FLIGHT:
            raise Busy(f"this link carries {MAX_IN_FLIGHT} requests already; use another node or wait", code="link_full")
        number, self._next = self._next, self._next + 1
        message = encode(opening(number))
        if len(message) > MAX_MESSAGE:
            raise BadRequest(f"the request has {len(message)} bytes; at most {MAX_MESSAGE} travel on a link", status=413)
        self._requests[number] = entry = _Request(emit, len(message) > PIECE)
        try:
            await self._run(number, entry, message)
        finally:
            if self._requests.pop(number, None) is not None:
                self._cancel(number, entry)

    async def _run(self, number: int, entry: _Request, message: bytes) -> None:
        await self._writer.room()
        if not entry.ended:
            self._writer.put(message)
        await entry.news.wait()
        while not entry.ended:
            await self._renew(number, entry)
            await entry.news.wait()
        if entry.error is not None:
            raise entry.error

    async def _renew(self, number: int, entry: _Request) -> None:
        """Give credit back once the caller has room; return early when the request ends."""
        with trio.CancelScope() as entry.waiting:
            await room(entry.emit)
        entry.waiting = None
        if not entry.ended:
            self._writer.put(encode(Credit(number, entry.taken)))
            entry.taken = 0
            entry.news = trio.Event()

    def _cancel(self, number: int, entry: _Request) -> None:
        message = encode(Cancel(number))
        if entry.large:
            # It may still wait behind its own `Open`, and must not overtake it.
            self._writer.put_large(message)
        else:
            self._writer.put(message)

    def take(self, number: int, event: Event, size: int) -> None:
        """Hand an event that came in `size` bytes to its request. Runs in the link's reader."""
        entry = self._requests.get(number)
        if entry is None or entry.ended:
            return
        price = cost(size)
        entry.taken += price
        if isinstance(event, Fail):
            self._end(number, error_of(event))
        elif entry.taken < QUANTUM or not self.credit or isinstance(event, Done | Kept):
            self._emit(number, entry, event)
        elif entry.taken - price >= WINDOW:
            self._overrun(number, entry)
        else:
            entry.news.set()
            self._emit(number, entry, event)

    def fail(self, number: int, why: str) -> None:
        """The other side sent something for this request that nobody understands."""
        entry = self._requests.get(number)
        if entry is not None:
            self._cancel(number, entry)
            self._end(
                number,
                BackendFailed(f"the node answered with a message that this version cannot read: {why}", code="bad_message"),
            )

    def lose(self, why: str) -> None:
        """The link ended: every request on it fails."""
        self._lost = Unavailable(why, code="link_lost")
        for number in list(self._requests):
            self._end(number, self._fresh_loss())

    def _overrun(self, number: int, entry: _Request) -> None:
        self._cancel(number, entry)
        self._end(number, BackendFailed(f"the node sent more than the {WINDOW} bytes that it had credit for"))

    def _emit(self, number: int, entry: _Request, event: Event) -> None:
        try:
            entry.emit(event)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller of `infer`, which raises it
            entry.end(error)
        else:
            if isinstance(event, Done | Kept):
                self._end(number, None)

    def _end(self, number: int, error: Exception | None) -> None:
        self._requests.pop(number).end(error)

    def _fresh_loss(self) -> Unavailable:
        assert self._lost is not None
        return Unavailable(self._lost.message, code=self._lost.code)
