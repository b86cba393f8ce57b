"""A budget for extra work: a share of the requests, a little per second, and never more than what was saved up.

A bucket of allowances. Each request puts `share` of one in, time puts `per_second` in. It holds at most `most`, and begins full.
"""

from __future__ import annotations

import trio


class Budget:
    """See the head of this file."""

    def __init__(self, *, share: float, per_second: float, most: float) -> None:
        self._share = share
        self._per_second = per_second
        self._most = most
        self._left = most
        self._at: float | None = None
        self.refused = 0
        """How often there was nothing left."""

    def deposit(self) -> None:
        """A request came."""
        self._left = min(self._most, self._left + self._share)

    def withdraw(self) -> bool:
        """Take one allowance; False when there is none."""
        now = trio.current_time()
        earned = 0.0 if self._at is None else (now - self._at) * self._per_second
        self._at = now
        self._left = min(self._most, self._left + earned)
        if self._left < 1:
            self.refused += 1
            return False
        self._left -= 1
        return True
