"""How many threads compute, while other programs want the cores too.

1. Threads that meet at the end of every product spin for a moment before they sleep (`node.worker.main`). Where there are fewer
   cores than threads that want one, all wait for the one that has none.
2. So when the kernel kept our threads from their cores for more than `CROWDED` of the time, half as many go on computing.
3. After `CALM` seconds twice as many are tried again; each time that was too many, the next try comes twice as late, until it is
   `LONGEST_CALM` later.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

_logger = logging.getLogger(__name__)

WINDOW = 0.25
"""Seconds between two looks."""
LEAST_RUN = 0.05
"""Seconds of computing in a window that say something."""
CROWDED = 0.25
CALM = 5.0
LONGEST_CALM = 80.0
TASKS = Path("/proc/self/task")


def cpu_times() -> tuple[float, float] | None:
    """Seconds that this process's threads ran, and that they waited for a core; None where the kernel does not tell."""
    ran = waited = 0
    try:
        for task in TASKS.iterdir():
            run, wait, _ = (task / "schedstat").read_text(encoding="ascii").split()
            ran, waited = ran + int(run), waited + int(wait)
    except OSError:
        # No such system, or a thread that has just ended: the next look tells.
        return None
    return ran / 1e9, waited / 1e9


class Cores:
    """At most `most` threads, and at least one. `times`, `clock` and `use` are the kernel's and torch's own."""

    def __init__(
        self,
        most: int,
        *,
        times: Callable[[], tuple[float, float] | None] = cpu_times,
        clock: Callable[[], float] = time.monotonic,
        use: Callable[[int], None] = torch.set_num_threads,
    ) -> None:
        self.threads = most
        self._most = most
        self._times = times
        self._clock = clock
        self._use = use
        self._looked = clock()
        self._seen = times()
        self._calm = CALM
        self._changed = self._looked
        self._trying = False
        use(most)

    def look(self) -> None:
        """After every step: now and then see whether there are too many threads, or could be more."""
        now = self._clock()
        if self._most == 1 or now - self._looked < WINDOW:
            return
        self._looked = now
        before, self._seen = self._seen, self._times()
        if before is None or self._seen is None:
            return
        ran, waited = self._seen[0] - before[0], self._seen[1] - before[1]
        if ran + waited < LEAST_RUN:
            return
        if waited > CROWDED * (ran + waited):
            self._halve(now)
        elif self.threads < self._most and now - self._changed >= self._calm:
            self._double(now)
        elif self._trying and now - self._changed >= CALM:
            self._trying, self._calm = False, CALM

    def _halve(self, now: float) -> None:
        if self._trying:
            self._calm = min(LONGEST_CALM, 2 * self._calm)
        self._trying = False
        self._changed = now
        if self.threads > 1:
            self._set(self.threads // 2)

    def _double(self, now: float) -> None:
        self._trying = True
        self._changed = now
        self._set(min(self._most, 2 * self.threads))

    def _set(self, threads: int) -> None:
        _logger.debug("%d of %d threads compute", threads, self._most)
        self.threads = threads
        self._use(threads)
