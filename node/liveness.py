"""Whether a worker gets on, judged by what it does and never by its pid.

1. Progress is the end of an engine step; it is due only while the engine has work. Without work, a word now and then is enough.
2. A step is late after `Patience.least` seconds, or three times what nearly all steps took (p99), whichever is longer. A late
   worker that computes nothing hangs. One that does compute may be slow: it gets `Patience.circles`, or three times its slowest
   step.
3. A worker that says nothing for `Patience.silence` seconds, and computes nothing, hangs too, whether or not it has work.
4. Loading has no steps: only `Patience.loading` seconds without a word and without computing are too long.
5. We judge nobody by our own sleep: when a look comes late, everything counts from then.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.messages.worker import Alive, Ready, Step

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.messages.worker import FromWorker

KEPT_GAPS = 512
"""Times between steps that are remembered."""
FACTOR = 3.0
_SUSPICIOUS = 1.0
"""Seconds without progress after which the process itself is looked at."""
_QUIET = 1.0
"""Seconds without computing that count as computing nothing."""
_LATE = 1.0
"""Seconds between two looks after which we slept ourselves."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Seconds, as the head of this file says. `circles` is the longest that a step may compute."""

    least: float = 2.0
    silence: float = 3.0
    circles: float = 60.0
    first: float = 600.0
    """Instead of `circles`, before the engine has measured how fast it reads a prompt: nobody knows what to expect of it."""
    loading: float = 60.0


class Liveness:
    """One life of a worker. Times are those of any steady clock, in seconds."""

    def __init__(self, patience: Patience, now: float) -> None:
        self._patience = patience
        self._gaps: deque[float] = deque(maxlen=KEPT_GAPS)
        self._slowest = 0.0
        self._ready = self._works = self._measured = False
        self._step = 0
        self._heard = self._progress = self._active = self._looked = now

    @property
    def limit(self) -> float:
        """Seconds that a step may take when nothing is computed."""
        if not self._gaps:
            return self._patience.least
        ordered = sorted(self._gaps)
        return max(self._patience.least, FACTOR * ordered[int(0.99 * (len(ordered) - 1))])

    def hear(self, message: FromWorker, now: float) -> None:
        """Anything that the worker says."""
        self._heard = now
        match message:
            case Step(load=load):
                self._advance(load.step, now)
                self._works = load.running + load.waiting > 0
                self._measured = load.prefill_rate > 0
            case Alive():
                self._feel(message, now)
            case Ready():
                self._ready = True
                self._progress = now

    def look(self, now: float, computes: Callable[[], bool]) -> str | None:
        """Why the worker is to be replaced, if it is. `computes` is asked only when there is doubt."""
        if now - self._looked > _LATE:
            self._heard = self._progress = now
        self._looked = now
        late = now - self._progress if self._ready and self._works else 0.0
        silent = now - self._heard
        if max(late, silent) < _SUSPICIOUS or computes():
            self._active = now
        return self._judge(late, silent, quiet=now - self._active >= _QUIET)

    def _judge(self, late: float, silent: float, *, quiet: bool) -> str | None:
        patience = self._patience
        if quiet and late > self.limit:
            return f"it hangs: step {self._step} has not ended for {late:.1f} s, and nothing is computed"
        if quiet and silent > (patience.silence if self._ready else patience.loading):
            return f"it hangs: nothing was heard of it for {silent:.1f} s, and nothing is computed"
        if late > max(patience.circles if self._measured else patience.first, FACTOR * self._slowest):
            return f"it computes in circles: step {self._step} has not ended for {late:.0f} s"
        return None

    def _advance(self, step: int, now: float) -> None:
        if self._works and step != self._step:
            self._gaps.append(now - self._progress)
            self._slowest = max(self._slowest, now - self._progress)
        self._step, self._progress = step, now

    def _feel(self, alive: Alive, now: float) -> None:
        works = alive.busy_seconds > 0 or alive.running + alive.waiting > 0
        if alive.step != self._step:
            self._advance(alive.step, now)
        elif works and not self._works:
            self._progress = now - alive.busy_seconds
        elif not works:
            self._progress = now
        self._works = works
