"""How well something that serves models does: one of six levels, and nowhere else are the rules.

1. `offline`: it cannot be reached, or was switched off. `unknown`: it can, and nobody has told anything yet of what it serves.
2. Without a model that can be asked: `initializing` while one loads that has not died, else `unhealthy`.
3. With one: `degraded` when another has failed or died, or when it failed with requests a moment ago; else `healthy`.
4. Healthy ones are preferred, degraded ones are still asked, others are not.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.messages.record import ModelState

Level = Literal["healthy", "degraded", "unhealthy", "offline", "initializing", "unknown"]
LEVELS: tuple[Level, ...] = ("healthy", "degraded", "unhealthy", "offline", "initializing", "unknown")
USABLE: frozenset[Level] = frozenset({"healthy", "degraded"})
ASKABLE: frozenset[ModelState] = frozenset({"ready", "asleep"})

RECENT = 10
"""Requests that tell whether something fails now."""
FAILING = 0.5
"""Share of them that makes it so, once there are `ENOUGH`."""
ENOUGH = 3


def level(states: Iterable[ModelState], *, reachable: bool = True, died: bool = False, failing: bool = False) -> Level:
    """`states` of its models. `died`: what loads had been running. `failing`: with requests, a moment ago."""
    known = list(states)
    if not reachable:
        return "offline"
    if not known:
        return "unknown"
    if not any(state in ASKABLE for state in known):
        return "initializing" if "loading" in known and not died else "unhealthy"
    return "degraded" if failing or died or "failed" in known else "healthy"


class Failures:
    """Whether the last requests say that something fails."""

    def __init__(self) -> None:
        self._recent: deque[bool] = deque(maxlen=RECENT)

    def ended(self, *, well: bool) -> None:
        """One more request."""
        self._recent.append(well)

    @property
    def failing(self) -> bool:
        """True until enough requests go well again."""
        return len(self._recent) >= ENOUGH and self._recent.count(False) >= FAILING * len(self._recent)
