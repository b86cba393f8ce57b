"""What is under way on a server, and whether it gets on with it.

1. A request is watched from `watching` to its end; every event of it is a sign of progress.
2. A request that waits for its reader is not the server's fault: it does not count as waiting for the server.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from mesh.service import paced, room

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mesh.messages.inference import Event
    from mesh.service import Emit


class Activity:
    """The requests under way on one server. `steps` grows with every event."""

    def __init__(self) -> None:
        self.in_flight = 0
        self.steps = 0
        self.heard = -math.inf
        """When the last event came, on trio's clock."""
        self._held = 0
        self._progress = 0.0

    @property
    def stalled(self) -> float:
        """Seconds since anything came of the requests that wait for the server; 0 when none does."""
        return trio.current_time() - self._progress if self.in_flight > self._held else 0.0

    @contextmanager
    def watching(self, emit: Emit) -> Iterator[Emit]:
        """Count a request; the `Emit` to use for it."""
        if self.in_flight == self._held:
            self._progress = trio.current_time()
        self.in_flight += 1
        try:
            yield self._watched(emit)
        finally:
            self.in_flight -= 1

    def _watched(self, emit: Emit) -> Emit:
        def counted(event: Event) -> None:
            self.steps += 1
            self._progress = self.heard = trio.current_time()
            emit(event)

        async def wait_for_reader() -> None:
            self._held += 1
            try:
                await room(emit)
            finally:
                self._held -= 1
                self._progress = trio.current_time()

        return paced(counted, wait_for_reader)
