"""Keeps what requests give out, so that whoever lost one goes on with it: its gateway on a new link, or another gateway.

1. A request with `keep` runs in a task of ours, not of its link. When its reader is lost it goes on for `grace` seconds and then
   stops; whoever ends it in good order ends it at once.
2. What it gave out is kept while it runs and for `kept` seconds after it ended, however it ended. `attach` tells what follows a
   position and then what still comes, each event once and in order.
3. A stream has one reader: who attaches takes it over, and the one before ends with `stream_taken`.
4. Who does not name both the secret and the tenant is told `stream_not_found`, as if there were nothing.
5. Streams and bytes are bounded for each tenant and for all. Those that ended first go first; where none has ended, a request
   runs without being kept, and one that grows too long is kept no longer.
6. An answer that names no tokens is not kept: nobody could say how much of it came.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import Conflict, MeshError, NotFound, Unavailable
from mesh.messages.inference import Accepted, Kept
from mesh.service import error_of, fail_of, paced
from node.kept_stream import KeptStream

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.messages.inference import InferenceRequest
    from mesh.messages.link import Attach
    from mesh.service import Emit, InferenceService

MIB = 1024 * 1024
STOPPED = "stopped"
"""The code of a stream that is over without being complete: whoever has the request can have it gone on with."""


@dataclass(frozen=True, kw_only=True)
class KeepingLimits:
    """Seconds, counts and bytes; see the head of this file."""

    grace: float = 10.0
    kept: float = 120.0
    streams: int = 4096
    streams_of_tenant: int = 2048
    bytes: int = 128 * MIB
    bytes_of_tenant: int = 64 * MIB
    bytes_of_stream: int = 8 * MIB


class Keeper:
    """A `KeepingService` in front of another service. `run` must be running before the first request."""

    def __init__(
        self,
        service: InferenceService,
        *,
        limits: KeepingLimits | None = None,
        keeps: Callable[[InferenceRequest], bool] = lambda _: True,
    ) -> None:
        """`keeps` tells for which requests it is of use."""
        self._service = service
        self._keeps = keeps
        self._limits = limits or KeepingLimits()
        self._streams: dict[bytes, KeptStream] = {}
        self._ended: dict[bytes, KeptStream] = {}
        """In the order in which they ended."""
        self._counts: Counter[str] = Counter()
        self._bytes: Counter[str] = Counter()
        self._nursery: trio.Nursery | None = None

    def __len__(self) -> int:
        return len(self._streams)

    @property
    def size(self) -> int:
        """Bytes that are kept, about."""
        return self._bytes.total()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the requests that are kept, and forget old ones, until cancelled."""
        async with trio.open_nursery() as self._nursery:
            task_status.started()
            while True:
                await trio.sleep(self._limits.kept / 8)
                self._expire()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request, kept when it asks for it and there is room. Raises what the service raises, Conflict."""
        wanted = request.keep and request.task != "embedding" and self._keeps(request)
        if self._nursery is None or not wanted or not self._make_way(request):
            await self._service.infer(request, emit)
            return
        stream = KeptStream(request, self._grew)
        self._streams[request.keep] = stream
        self._counts[request.tenant] += 1
        self._bytes[request.tenant] += stream.size
        self._nursery.start_soon(self._work, stream)
        await self._read(stream, emit, 0)

    async def attach(self, wanted: Attach, emit: Emit) -> None:
        """Go on with a stream. Raises NotFound(code="stream_not_found"), Unavailable(code="stopped"), what the service raised."""
        self._expire()
        stream = self._streams.get(wanted.keep)
        before = stream.log.before(wanted.tokens) if stream is not None and stream.request.tenant == wanted.tenant else None
        if stream is None or before is None:
            raise NotFound("no such stream: its output is not kept here; send the request again", code="stream_not_found")
        if not wanted.follow:
            emit(Kept(msgspec.structs.replace(stream.request, prior=before.token_ids), before.characters, before.ended))
            return
        over = stream.ended.is_set()
        emit(Accepted(kept=True))
        try:
            await self._read(stream, emit, before.index)
        except MeshError as error:
            if over and error.retriable:
                raise Unavailable("the request was stopped before its end", code=STOPPED) from error
            raise

    async def _read(self, stream: KeptStream, emit: Emit, index: int) -> None:
        await stream.read(emit, index, grace=self._limits.grace)
        if stream.failure is not None:
            raise error_of(stream.failure)

    async def _work(self, stream: KeptStream) -> None:
        error: MeshError | None = None
        try:
            with stream.scope:
                await self._service.infer(stream.request, paced(stream.take, stream.room))
            if stream.scope.cancelled_caught:
                error = Unavailable("the request was stopped, because nobody read its answer", code=STOPPED)
        except MeshError as raised:
            error = raised
        except Exception as raised:  # noqa: BLE001 - it belongs to this stream alone; `end` has it logged
            error = stream.broken(raised)
        finally:
            stream.end(None if error is None else fail_of(error))
            self._file(stream)

    def _file(self, stream: KeptStream) -> None:
        """A stream ended: keep it for a while, unless there is nothing in it."""
        if not stream.kept:
            return
        if stream.failure is not None and not stream.log.tokens:
            self._forget(stream)
        else:
            self._ended[stream.request.keep] = stream

    # Room

    def _make_way(self, request: InferenceRequest) -> bool:
        """Whether one more stream may be kept. Raises Conflict when this one runs already."""
        limits, tenant = self._limits, request.tenant
        known = self._streams.get(request.keep)
        if known is not None:
            if not known.ended.is_set():
                known.scope.cancel()
                raise Conflict(f"request {request.request_id} is running here already", code="request_in_progress")
            self._forget(known)
        if self._counts[tenant] >= limits.streams_of_tenant:
            self._forget_one(tenant)
        elif len(self._streams) >= limits.streams:
            self._forget_one(None)
        return self._counts[tenant] < limits.streams_of_tenant and len(self._streams) < limits.streams

    def _grew(self, stream: KeptStream, grown: int) -> None:
        limits, tenant = self._limits, stream.request.tenant
        self._bytes[tenant] += grown
        while self._bytes[tenant] > limits.bytes_of_tenant and self._forget_one(tenant):
            pass
        while self.size > limits.bytes and self._forget_one(None):
            pass
        if stream.size > limits.bytes_of_stream or self._bytes[tenant] > limits.bytes_of_tenant or self.size > limits.bytes:
            self._forget(stream)

    def _forget_one(self, tenant: str | None) -> bool:
        """Forget the stream of a tenant, or of all, that ended first. False when none has."""
        for stream in self._ended.values():
            if tenant is None or stream.request.tenant == tenant:
                self._forget(stream)
                return True
        return False

    def _forget(self, stream: KeptStream) -> None:
        keep, tenant = stream.request.keep, stream.request.tenant
        del self._streams[keep]
        self._ended.pop(keep, None)
        self._counts[tenant] -= 1
        self._bytes[tenant] -= stream.size
        if not self._counts[tenant]:
            del self._counts[tenant], self._bytes[tenant]
        stream.forget()

    def _expire(self) -> None:
        oldest = trio.current_time() - self._limits.kept
        for stream in [stream for stream in self._ended.values() if stream.ended_at <= oldest]:
            self._forget(stream)
