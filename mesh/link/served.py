"""Requests that the other side opened on a link, and that our service answers.

1. Every opened number gets exactly one terminal event, unless the other side cancelled it or the link ended; nothing follows it.
2. At most `MAX_IN_FLIGHT` run at once, counting those that were cancelled and have not stopped yet.
3. A request with `MAX_QUEUED` bytes unwritten fails alone (`slow_consumer`).
4. What a service raises that is not a MeshError is logged here and told to the other side without details.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mesh.errors import BackendFailed, BadRequest, Busy, MeshError, NotFound
from mesh.link.codec import MAX_MESSAGE, encode
from mesh.link.opened import MAX_IN_FLIGHT
from mesh.link.writer import Account
from mesh.messages.inference import Done, Event, Fail
from mesh.messages.link import Emit, ModelLoad, Open
from mesh.service import fail_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesh.link.writer import LinkWriter
    from mesh.messages.inference import InferenceRequest
    from mesh.service import InferenceService

MAX_QUEUED = 1024 * 1024

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Request:
    number: int
    request: InferenceRequest
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    account: Account = field(default_factory=Account)
    ended: bool = False


class ServedRequests:
    """The answering half of a link. Its requests run in `nursery`."""

    def __init__(
        self,
        writer: LinkWriter,
        service: InferenceService | None,
        load: Callable[[], Mapping[str, ModelLoad]],
        nursery: trio.Nursery,
    ) -> None:
        self._writer = writer
        self._service = service
        self._load = load
        self._nursery = nursery
        self._requests: dict[int, _Request] = {}
        self._running = 0

    def __len__(self) -> int:
        return self._running

    def open(self, message: Open) -> None:
        """Start a request, or answer at once why not."""
        number, request = message.stream, message.request
        if number in self._requests:
            self.refuse(number, BadRequest(f"request number {number} is in use; both were ended"))
        elif self._service is None:
            self.refuse(number, NotFound(f"model {request.model!r} is not served here", code="model_not_found", param="model"))
        elif self._running >= MAX_IN_FLIGHT:
            self.refuse(number, Busy(f"this link carries {MAX_IN_FLIGHT} requests already; use another node or wait"))
        else:
            self._requests[number] = entry = _Request(number, request)
            self._running += 1
            self._nursery.start_soon(self._serve, entry, self._service)

    def cancel(self, number: int) -> None:
        """Stop a request whose opener lost interest."""
        if number in self._requests:
            self._forget(self._requests[number])

    def refuse(self, number: int, error: MeshError) -> None:
        """Answer a number with an error. What runs under it stops: nothing may follow a terminal event."""
        self.cancel(number)
        self._writer.put(encode(Emit(number, fail_of(error))))

    async def _serve(self, entry: _Request, service: InferenceService) -> None:
        try:
            with entry.scope:
                await service.infer(entry.request, lambda event: self._emit(entry, event))
        except Exception as error:  # noqa: BLE001 - a service's failure ends its request alone
            self._fail(entry, self._explain(entry, error))
        else:
            # Not when cancelled: then the number is free already and this says nothing.
            self._fail(entry, BackendFailed(f"model {entry.request.model!r} stopped without a result; try again"))
        finally:
            self._running -= 1

    def _emit(self, entry: _Request, event: Event) -> None:
        if entry.ended:
            return
        message = encode(Emit(entry.number, event))
        ends = isinstance(event, Done | Fail)
        if entry.account.queued > MAX_QUEUED and not ends:
            error = BadRequest(f"more than {MAX_QUEUED} bytes of the answer were waiting to be read", code="slow_consumer")
            self._break(entry, error)
        elif len(message) > MAX_MESSAGE:
            error = BadRequest(f"one event of the answer has {len(message)} bytes; ask for less at once", code="answer_too_large")
            self._break(entry, error)
        else:
            self._writer.put(message, entry.account)
            if ends:
                self._end(entry)

    def _break(self, entry: _Request, error: MeshError) -> None:
        self._fail(entry, error)
        entry.scope.cancel()

    def _fail(self, entry: _Request, error: MeshError) -> None:
        if entry.ended:
            return
        load = self._load().get(entry.request.model)
        fail = fail_of(error, running=load.running, waiting=load.waiting) if load else fail_of(error)
        self._writer.put(encode(Emit(entry.number, fail)))
        self._end(entry)

    def _forget(self, entry: _Request) -> None:
        self._end(entry)
        entry.scope.cancel()

    def _end(self, entry: _Request) -> None:
        entry.ended = True
        if self._requests.get(entry.number) is entry:
            del self._requests[entry.number]

    def _explain(self, entry: _Request, error: Exception) -> MeshError:
        known = _only_mesh_error(error)
        if known is not None:
            return known
        logger.error("request %s for %s failed", entry.request.request_id, entry.request.model, exc_info=error)
        return BackendFailed(f"model {entry.request.model!r} failed; the node's log says why")


def _only_mesh_error(error: Exception) -> MeshError | None:
    """The MeshError that an error is, or the single one that a nursery wrapped."""
    while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error if isinstance(error, MeshError) else None
