"""One request whose output is kept: its log, and the one who reads it now.

1. A reader first gets what the log has, page by page as it has room; then every event in the call that brings it.
2. While nobody reads, nothing waits: the log takes it all.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import BackendFailed, Conflict, MeshError
from mesh.messages.inference import Accepted, Delta, Done
from mesh.service import lost, room
from node.output_log import OutputLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.messages.inference import Event, Fail, InferenceRequest
    from mesh.service import Emit

STOPPING = 5.0
"""Seconds that whoever ends a request waits for it to stop."""

logger = logging.getLogger(__name__)


class _Reader:
    """Somebody who reads. `live`: it got all that the log had."""

    def __init__(self, emit: Emit) -> None:
        self.emit = emit
        self.live = False
        self.told_end = False
        self.replaced = False
        self.over = trio.Event()
        self.waiting: trio.CancelScope | None = None

    def end(self) -> None:
        """The stream ended, or is somebody else's now."""
        self.over.set()
        if self.waiting is not None:
            self.waiting.cancel()


class KeptStream:
    """See the head of this file. `grew` is told when the log took more memory; it may `forget` the stream."""

    def __init__(self, request: InferenceRequest, grew: Callable[[KeptStream, int], None]) -> None:
        self.request = request
        self.log = OutputLog(request.prior)
        self.size = len(msgspec.msgpack.encode(request))
        self.scope = trio.CancelScope()
        """Of the work."""
        self.kept = True
        """It can be found, so the log is of use."""
        self.ended = trio.Event()
        self.ended_at = math.inf
        self.failure: Fail | None = None
        self._done: Done | None = None
        self._grew = grew
        self._reader: _Reader | None = None

    def take(self, event: Event) -> None:
        """Keep one event and pass it on to who reads."""
        if isinstance(event, Delta):
            if self.kept and (grown := self.log.add(event)):
                self.size += grown
                self._grew(self, grown)
        elif isinstance(event, Accepted):
            event = msgspec.structs.replace(event, kept=True)
        elif isinstance(event, Done):
            self._done = event
        reader = self._reader
        if reader is not None and reader.live:
            reader.told_end = self._done is not None
            reader.emit(event)

    async def room(self) -> None:
        """Wait for the reader, if there is one."""
        reader = self._reader
        if reader is None or not reader.live:
            return
        with trio.CancelScope() as reader.waiting:
            await room(reader.emit)
        reader.waiting = None

    def forget(self) -> None:
        """Nobody will attach any more. Work that nobody reads, or that is read from the log alone, stops."""
        self.kept = False
        if self._reader is None or not self._reader.live:
            self.scope.cancel()

    def end(self, failure: Fail | None) -> None:
        """The work is over; without `failure` it is complete."""
        self.failure = failure
        self.ended_at = trio.current_time()
        self.ended.set()
        if self._reader is not None:
            self._reader.end()

    def broken(self, error: Exception) -> MeshError:
        """What readers are told of an error that is none of ours."""
        logger.error("request %s for %s failed", self.request.request_id, self.request.model, exc_info=error)
        return BackendFailed(f"model {self.request.model!r} failed; the node's log says why")

    async def read(self, emit: Emit, index: int, *, grace: float) -> None:
        """Pass on the events from `index` on until the work is over. Raises Conflict when somebody else takes over.

        When it is cancelled the work stops, or goes on for `grace` seconds where the reader was lost.
        """
        if self._reader is not None:
            self._reader.replaced = True
            self._reader.end()
        reader = self._reader = _Reader(emit)
        self.scope.deadline = math.inf
        try:
            await self._replay(reader, index)
            if not self.ended.is_set():
                await reader.over.wait()
        finally:
            if self._reader is reader:
                self._reader = None
                await self._left(emit, grace)
        if reader.replaced:
            raise Conflict("the stream was picked up elsewhere", code="stream_taken")
        if self._done is not None and not reader.told_end:
            emit(self._done)

    async def _replay(self, reader: _Reader, index: int) -> None:
        while not reader.replaced and (page := self.log.page(index)):
            for delta in page:
                reader.emit(delta)
            index += len(page)
            await room(reader.emit)
        reader.live = True

    async def _left(self, emit: Emit, grace: float) -> None:
        """Nobody reads any more."""
        if self.ended.is_set():
            return
        if self.kept and lost(emit):
            self.scope.deadline = trio.current_time() + grace
            return
        self.scope.cancel()
        with trio.move_on_after(STOPPING, shield=True):
            await self.ended.wait()
