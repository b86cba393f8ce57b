"""How long to wait before the next try: doubling, jittered, bounded."""

from __future__ import annotations

import math
import random

FIRST = 0.5
LONGEST = 30.0


class Backoff:
    """Waits in seconds for one thing that is tried again and again."""

    def __init__(self, *, first: float = FIRST, longest: float = LONGEST) -> None:
        self._first = first
        self._longest = longest
        self._next = first

    def next(self, *, at_most: float = math.inf) -> float:
        """The next wait: between a half and the whole of a bound that doubles, so that a herd spreads out."""
        bound, self._next = min(self._next, at_most), min(self._longest, self._next * 2)
        return bound * random.uniform(0.5, 1.0)  # noqa: S311 - spreads retries, guards nothing

    def give_up_for_long(self) -> None:
        """The next waits are the longest: trying sooner cannot help."""
        self._next = self._longest

    def reset(self) -> None:
        """It worked."""
        self._next = self._first
