"""The one shape of "something that answers inference requests": a backend, a node's service, a gateway's dispatch, a test double.

1. `infer` runs one request to its end. It emits at most one `Accepted`, then `Delta`s, then exactly one `Done`, and returns.
2. It never emits `Fail`: it raises a `MeshError`, and the edge that answers somebody turns that into `Fail` or an HTTP error.
3. Cancelling it stops the work: when it has returned or raised, nothing runs on for the request.
4. `emit` is synchronous and never blocks: it queues. The queue's owner bounds it and cancels `infer` when the bound is reached.
5. Whoever can wait keeps pace with the reader by `await room(emit)`; whoever wraps an `emit` passes its room on (`paced`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from mesh.errors import KINDS, MeshError
from mesh.messages.inference import Event, Fail

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from mesh.messages.link import Attach

Emit = Callable[[Event], None]


class Paced(partial[None]):
    """An `Emit` that can tell when there is room again. A `partial`, because it is called for every token."""

    room: Callable[[], Awaitable[None]]
    lost: Callable[[], bool]


def paced(emit: Emit, room: Callable[[], Awaitable[None]], lost: Callable[[], bool] = lambda: False) -> Paced:
    """`emit`, with `room` to wait for those who ask; `lost` tells whether the reader vanished without a word."""
    made = Paced(emit)
    made.room = room
    made.lost = lost
    return made


def lost(emit: Emit) -> bool:
    """True when the reader did not end the request: the way to it broke. False where `emit` cannot tell."""
    return isinstance(emit, Paced) and emit.lost()


async def room(emit: Emit) -> None:
    """Wait until the reader took most of what `emit` got; not at all where `emit` cannot tell. No time limit of its own."""
    if isinstance(emit, Paced):
        await emit.room()


class InferenceService(Protocol):
    """See the head of this file for the rules."""

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request. Blocks until its terminal event; no time limit of its own. Raises MeshError."""
        ...


@runtime_checkable
class KeepingService(InferenceService, Protocol):
    """One that keeps what it gave out, for requests that ask for it (`InferenceRequest.keep`).

    Rule 3 does not hold for those when their reader was lost: they go on for a while, and `attach` finds them.
    """

    async def attach(self, wanted: Attach, emit: Emit) -> None:
        """Answer as `infer` does, from the token on that `wanted` names. Raises NotFound(code="stream_not_found"), MeshError."""
        ...


def fail_of(error: MeshError, *, running: int = 0, waiting: int = 0) -> Fail:
    """The message that carries an error to another process."""
    return Fail(
        kind=type(error).__name__,
        message=error.message,
        code=error.code,
        status=error.status,
        param=error.param,
        retry_after=error.retry_after,
        running=running,
        waiting=waiting,
    )


def error_of(fail: Fail) -> MeshError:
    """The error that another process raised. An unknown kind becomes the root, which is never retried."""
    kind = KINDS.get(fail.kind, MeshError)
    return kind(fail.message, code=fail.code, param=fail.param, status=fail.status, retry_after=fail.retry_after)
