"""Requests that our side opened on a link.

1. A number is used once in the life of a link; events for a number that is not open any more are ignored.
2. Every `infer` ends: with `Done`, with the other side's error, with `link_lost`, or by cancellation, which sends `Cancel`.
3. A caller whose `emit` raises ends its own request and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mesh.errors import BackendFailed, BadRequest, Busy, Unavailable
from mesh.link.codec import MAX_MESSAGE, encode
from mesh.messages.inference import Done, Event, Fail
from mesh.messages.link import Cancel, Open
from mesh.service import error_of

if TYPE_CHECKING:
    from mesh.link.writer import LinkWriter
    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit

MAX_IN_FLIGHT = 256


@dataclass(slots=True)
class _Request:
    emit: Emit
    ended: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None


class OpenedRequests:
    """The asking half of a link."""

    def __init__(self, writer: LinkWriter) -> None:
        self._writer = writer
        self._requests: dict[int, _Request] = {}
        self._next = 1
        self._lost: Unavailable | None = None

    def __len__(self) -> int:
        return len(self._requests)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Ask the other side. Raises its MeshError, or Unavailable(code="link_lost")."""
        if self._lost is not None:
            raise self._fresh_loss()
        if len(self._requests) >= MAX_IN_FLIGHT:
            raise Busy(f"this link carries {MAX_IN_FLIGHT} requests already; use another node or wait", code="link_full")
        number, self._next = self._next, self._next + 1
        message = encode(Open(number, request))
        if len(message) > MAX_MESSAGE:
            raise BadRequest(f"the request has {len(message)} bytes; at most {MAX_MESSAGE} travel on a link", status=413)
        self._requests[number] = entry = _Request(emit)
        try:
            await self._run(entry, message)
        finally:
            if self._requests.pop(number, None) is not None:
                self._writer.put(encode(Cancel(number)))

    async def _run(self, entry: _Request, message: bytes) -> None:
        await self._writer.room()
        if not entry.ended.is_set():
            self._writer.put(message)
        await entry.ended.wait()
        if entry.error is not None:
            raise entry.error

    def take(self, number: int, event: Event) -> None:
        """Hand an event to its request. Runs in the link's reader."""
        entry = self._requests.get(number)
        if entry is None or entry.ended.is_set():
            return
        match event:
            case Fail():
                self._end(number, error_of(event))
            case _:
                self._emit(number, entry, event)

    def fail(self, number: int, why: str) -> None:
        """The other side sent something for this request that nobody understands."""
        if number in self._requests:
            self._writer.put(encode(Cancel(number)))
            self._end(number, BackendFailed(f"the node answered with a message that this version cannot read: {why}"))

    def lose(self, why: str) -> None:
        """The link ended: every request on it fails."""
        self._lost = Unavailable(why, code="link_lost")
        for number in list(self._requests):
            self._end(number, self._fresh_loss())

    def _emit(self, number: int, entry: _Request, event: Event) -> None:
        try:
            entry.emit(event)
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the caller of `infer`, which raises it
            entry.error = error
            entry.ended.set()
        else:
            if isinstance(event, Done):
                self._end(number, None)

    def _end(self, number: int, error: Exception | None) -> None:
        entry = self._requests.pop(number)
        entry.error = error
        entry.ended.set()

    def _fresh_loss(self) -> Unavailable:
        assert self._lost is not None
        return Unavailable(self._lost.message, code=self._lost.code)
