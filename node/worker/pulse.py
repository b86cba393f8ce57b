"""How the engine is, told by somebody who does not wait for it.

1. The engine's thread writes, others only read; what they read is a whole object, never one that is being changed.
2. What the engine is doing has an age: that is all it takes to see that it hangs.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mesh.messages.worker import Alive, EngineStats

if TYPE_CHECKING:
    from node.worker.serving import Computing

REFRESH = 0.5
"""Seconds between looks at the counters while the engine is busy."""


class Pulse:
    """Between `begin` and `end` the engine is at work."""

    def __init__(self) -> None:
        self._begun: float | None = None
        self._looked = 0.0
        self._last = Alive(step=0, running=0, waiting=0, busy_seconds=0.0, stats=EngineStats())

    def begin(self) -> None:
        """The engine starts on something."""
        self._begun = time.monotonic()

    def end(self, engine: Computing) -> None:
        """It is through."""
        now = time.monotonic()
        self._begun = None
        load = engine.load
        stats = self._last.stats
        if engine.idle or now - self._looked > REFRESH:
            stats, self._looked = engine.stats, now
        self._last = Alive(step=load.step, running=load.running, waiting=load.waiting, busy_seconds=0.0, stats=stats)

    def alive(self) -> Alive:
        """The state as of now. Any thread may ask."""
        begun, last = self._begun, self._last
        busy = 0.0 if begun is None else time.monotonic() - begun
        return Alive(step=last.step, running=last.running, waiting=last.waiting, busy_seconds=busy, stats=last.stats)
