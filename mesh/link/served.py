"""Requests that the other side opened on a link, and that our service answers.

1. Every opened number gets exactly one terminal event, unless the other side cancelled it or the link ended; nothing follows it.
2. At most `MAX_IN_FLIGHT` run at once, counting those that were cancelled and have not stopped yet.
3. Events wait for the opener's credit (`credit.py`) and for the writer; a request whose events wait too long fails alone. `infer`
   counts as running until the last of them is on its way.
4. What a service raises that is not a MeshError is logged here and told to the other side without details.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import trio

from mesh.errors import BackendFailed, BadRequest, Busy, MeshError, NotFound
from mesh.framing import FrameError
from mesh.link.codec import MAX_MESSAGE, encode
from mesh.link.credit import MAX_HELD, MAX_HELD_BY_LINK, Allowance, cost, too_slow
from mesh.link.opened import MAX_IN_FLIGHT
from mesh.link.pieces import PIECE
from mesh.link.writer import CROWDED
from mesh.messages.inference import Delta, Done, Event, Fail, Kept
from mesh.messages.link import Credit, Emit, ModelLoad, Open
from mesh.service import KeepingService, fail_of, paced

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from mesh.link.writer import LinkWriter
    from mesh.messages.link import Attach
    from mesh.service import Emit as EmitEvent
    from mesh.service import InferenceService

logger = logging.getLogger(__name__)


def _set_event() -> trio.Event:
    event = trio.Event()
    event.set()
    return event


@dataclass(slots=True, eq=False)
class _Request:
    number: int
    model: str
    """Empty: of a request that was kept."""
    name: str
    work: Callable[[EmitEvent], Awaitable[None]]
    allowance: Allowance
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    ended: bool = False
    """Nothing more may be said: its terminal event is queued, or nobody listens."""
    large: bool = False
    """One of its events was large: the later ones must not overtake it."""
    flowing: trio.Event = field(default_factory=_set_event)
    """Set while no event of it waits."""


class ServedRequests:
    """The answering half of a link. Its requests run in `nursery`."""

    def __init__(
        self,
        writer: LinkWriter,
        service: InferenceService | None,
        load: Callable[[], Mapping[str, ModelLoad]],
        nursery: trio.Nursery,
        *,
        credit: bool,
    ) -> None:
        """`credit`: whether the other side gives any."""
        self._writer = writer
        self._service = service
        self._load = load
        self._nursery = nursery
        self._credit = credit
        self._held_bytes = 0
        self._requests: dict[int, _Request] = {}
        self._running = 0

    def __len__(self) -> int:
        return self._running

    def open(self, message: Open) -> None:
        """Start a request, or answer at once why not."""
        request, service = message.request, self._service
        if service is None:
            error = NotFound(f"model {request.model!r} is not served here", code="model_not_found", param="model")
            self.refuse(message.stream, error)
        else:
            self._start(message.stream, request.model, request.request_id, partial(service.infer, request))

    def attach(self, message: Attach) -> None:
        """Go on with a request that the service keeps, or answer at once why not."""
        service = self._service
        if isinstance(service, KeepingService):
            self._start(message.stream, "", "that was kept", partial(service.attach, message))
        else:
            self.refuse(message.stream, NotFound("nothing is kept here; send the request again", code="stream_not_found"))

    def _start(self, number: int, model: str, name: str, work: Callable[[EmitEvent], Awaitable[None]]) -> None:
        if number in self._requests:
            self.refuse(number, BadRequest(f"request number {number} is in use; both were ended"))
        elif self._running >= MAX_IN_FLIGHT:
            self.refuse(number, Busy(f"this link carries {MAX_IN_FLIGHT} requests already; use another node or wait"))
        else:
            self._requests[number] = entry = _Request(number, model, name, work, Allowance(limited=self._credit))
            self._running += 1
            self._nursery.start_soon(self._serve, entry)

    def cancel(self, number: int) -> None:
        """Stop a request whose opener lost interest."""
        if number in self._requests:
            self._forget(self._requests[number])

    def grant(self, message: Credit) -> None:
        """The opener took events. Raises FrameError when that cannot be."""
        if not self._credit:
            raise FrameError("credit from a peer that does not know it")
        entry = self._requests.get(message.stream)
        if entry is not None:
            entry.allowance.grant(message.amount)

    def refuse(self, number: int, error: MeshError) -> None:
        """Answer a number with an error. What runs under it stops: nothing may follow a terminal event."""
        self.cancel(number)
        self._writer.put_event(encode(Emit(number, fail_of(error))))

    async def _serve(self, entry: _Request) -> None:
        try:
            await self._answer(entry)
            await self._flowing(entry)
        finally:
            self._running -= 1

    async def _answer(self, entry: _Request) -> None:
        try:
            with entry.scope:
                await entry.work(paced(partial(self._emit, entry), partial(self._flowing, entry), lambda: not entry.ended))
        except Exception as error:  # noqa: BLE001 - a service's failure ends its request alone
            self._fail(entry, self._explain(entry, error))
        else:
            # Not when cancelled: then the number is free already and this says nothing.
            self._fail(entry, BackendFailed(f"model {entry.model!r} stopped without a result; try again"))

    def _emit(self, entry: _Request, event: Event) -> None:
        if entry.ended:
            return
        message = encode(Emit(entry.number, event))
        allowance = entry.allowance
        # Tokens first: this runs for each of them.
        ends = not isinstance(event, Delta) and isinstance(event, Done | Fail | Kept)
        if len(message) > MAX_MESSAGE:
            error = BadRequest(f"one event of the answer has {len(message)} bytes; ask for less at once", code="answer_too_large")
            self._break(entry, error)
        elif allowance.held or (allowance.credit <= 0 and not ends) or self._writer.pending > CROWDED:
            self._hold(entry, message, ends=ends)
        else:
            allowance.credit -= cost(len(message))
            self._put(entry, message)
            if ends:
                self._end(entry)

    def _fail(self, entry: _Request, error: MeshError) -> None:
        """End with an error, after the events that wait."""
        self._emit(entry, self._fail_of(entry, error))

    def _break(self, entry: _Request, error: MeshError) -> None:
        """End with an error at once, and stop the service."""
        self._drop(entry)
        self._put(entry, encode(Emit(entry.number, self._fail_of(entry, error))))
        self._forget(entry)

    def _fail_of(self, entry: _Request, error: MeshError) -> Fail:
        load = self._load().get(entry.model)
        return fail_of(error, running=load.running, waiting=load.waiting) if load else fail_of(error)

    def _forget(self, entry: _Request) -> None:
        self._drop(entry)
        self._end(entry)
        entry.scope.cancel()

    def _end(self, entry: _Request) -> None:
        entry.ended = True
        if self._requests.get(entry.number) is entry:
            del self._requests[entry.number]

    def _put(self, entry: _Request, message: bytes) -> None:
        if entry.large:
            self._writer.put_large(message)
        else:
            self._writer.put_event(message)
            entry.large = len(message) > PIECE

    # Pausing

    def _hold(self, entry: _Request, message: bytes, *, ends: bool) -> None:
        if self._is_too_much(entry, message) and not (ends and len(message) <= PIECE):
            self._break(entry, too_slow())
            return
        self._held_bytes += len(message)
        entry.allowance.hold(message)
        entry.ended = ends
        if entry.flowing.is_set():
            entry.flowing = trio.Event()
            self._nursery.start_soon(self._pause, entry)

    def _is_too_much(self, entry: _Request, message: bytes) -> bool:
        return entry.allowance.held_bytes > MAX_HELD or self._held_bytes + len(message) > MAX_HELD_BY_LINK

    async def _pause(self, entry: _Request) -> None:
        """Send what waits, as there is credit and room for it."""
        allowance = entry.allowance
        while allowance.held:
            if not await allowance.changed():
                self._break(entry, too_slow())
            await self._writer.room()
            while allowance.held and allowance.credit > 0 and not self._writer.crowded:
                message = allowance.release()
                self._held_bytes -= len(message)
                self._put(entry, message)
        if entry.ended:
            self._end(entry)
        entry.flowing.set()

    async def _flowing(self, entry: _Request) -> None:
        if not entry.flowing.is_set():
            await entry.flowing.wait()

    def _drop(self, entry: _Request) -> None:
        self._held_bytes -= entry.allowance.held_bytes
        entry.allowance.drop()

    def _explain(self, entry: _Request, error: Exception) -> MeshError:
        known = _only_mesh_error(error)
        if known is not None:
            return known
        logger.error("request %s for %s failed", entry.name, entry.model, exc_info=error)
        return BackendFailed(f"model {entry.model!r} failed; the node's log says why")


def _only_mesh_error(error: Exception) -> MeshError | None:
    """The MeshError that an error is, or the single one that a nursery wrapped."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, MeshError) else None
