"""One model of a multiplexer: what runs on it, who waits for it, and how it has done lately."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from mesh.errors import Unavailable
from node.multiplexer.line import Line

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit
    from node.multiplexer.switchable import Switchable

FIRST_PAUSE = 5.0
LONGEST_PAUSE = 300.0
"""Seconds after a failed wake in which it is not tried again: doubling from the first to the longest."""


class Tenure:
    """The time since a model became ready, and how much of it went into work. Seconds."""

    def __init__(self) -> None:
        self.since = trio.current_time()
        self.served = 0
        self._running = 0
        self._busy = 0.0
        self._edge = self.since
        """When it last began to work, or stopped."""

    @property
    def lasted(self) -> float:
        return trio.current_time() - self.since

    @property
    def busy(self) -> float:
        return self._busy + (trio.current_time() - self._edge if self._running else 0.0)

    @property
    def idle(self) -> float:
        return 0.0 if self._running else trio.current_time() - self._edge

    def begin(self) -> None:
        """A request starts."""
        if not self._running:
            self._edge = trio.current_time()
        self._running += 1
        self.served += 1

    def end(self) -> None:
        """A request has ended."""
        self._running -= 1
        if not self._running:
            now = trio.current_time()
            self._busy += now - self._edge
            self._edge = now


class Member:
    """See the head of this file."""

    def __init__(self, backend: Switchable, *, max_waiting: int, news: Callable[[], None]) -> None:
        self.backend = backend
        self.model = backend.entry.id
        self.line = Line(self.model, limit=max_waiting, changed=news)
        self.tenure: Tenure | None = None
        """While it is awake."""
        self.last_error: str | None = None
        self.measured = 0
        """Bytes that the accelerator had less of when it last woke alone; 0 before that, and where nothing tells."""
        self._news = news
        self._running: set[trio.CancelScope] = set()
        self._failures = 0
        self._retry_at = 0.0

    @property
    def memory(self) -> int:
        """Bytes that it takes while it is awake, as its backend says or as `measured`; 0 = nobody knows yet."""
        return self.backend.memory or self.measured

    @property
    def idle_for(self) -> float:
        """Seconds since it last worked on something; 0 while it does, or sleeps."""
        return self.tenure.idle if self.tenure is not None else 0.0

    @property
    def awake_for(self) -> float:
        """Seconds since it woke; 0 while it sleeps."""
        return self.tenure.lasted if self.tenure is not None else 0.0

    @property
    def in_flight(self) -> int:
        """Requests that run on it."""
        return len(self._running)

    @property
    def barred(self) -> float:
        """Seconds until it is tried again after a failed wake; 0: it may be tried."""
        return max(0.0, self._retry_at - trio.current_time())

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run a request that has its turn. Raises Unavailable when the accelerator went to another model before its end."""
        tenure = self.tenure
        assert tenure is not None
        scope = trio.CancelScope()
        self._running.add(scope)
        tenure.begin()
        try:
            with scope:
                await self.backend.infer(request, emit)
        finally:
            self._running.discard(scope)
            tenure.end()
            self._news()
        if scope.cancelled_caught:
            raise Unavailable(f"{self.model} had to make room for another model; send the request again", code="model_switched")

    def interrupt(self) -> int:
        """End what runs on it; how many requests that were."""
        for scope in self._running:
            scope.cancel()
        return len(self._running)

    def woke(self) -> None:
        """It is ready: let those in who wait."""
        self.tenure = Tenure()
        self.last_error = None
        self._failures, self._retry_at = 0, 0.0
        self.line.open()

    def failed(self, why: str) -> None:
        """It could not be woken: send away who waits, and leave it alone for a while."""
        self.last_error = why
        self._retry_at = trio.current_time() + min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(self._failures, 16))
        self._failures += 1
        self.line.refuse(self.refusal)

    def refusal(self) -> Unavailable:
        """What a request is told that comes too soon after a failed wake."""
        return Unavailable(
            f"{self.model} could not be woken on this node: {self.last_error}; send the request to another node, or again later",
            code="wake_failed",
            retry_after=max(1.0, round(self.barred)),
        )
