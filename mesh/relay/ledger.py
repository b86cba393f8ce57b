"""How many bytes were passed on between each pair of peers within the present window of time.

1. A window begins with the first byte of a pair, whatever the number of circuits; opening another one does not help.
2. It remembers at most `MAX_PAIRS`, and forgets the oldest windows first.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.identity import PeerId

MAX_PAIRS = 4_096


class Ledger:
    """See the head of this file."""

    def __init__(self, total: int, window: float, clock: Callable[[], float] = trio.current_time) -> None:
        self._total = total
        self._window = window
        self._clock = clock
        self._pairs: dict[frozenset[PeerId], tuple[float, int]] = {}

    def spend(self, one: PeerId, other: PeerId, size: int) -> bool:
        """Note bytes of a pair. False when they are over what it may use."""
        began, used = self._present(one, other)
        self._pairs[frozenset((one, other))] = (began, used + size)
        if len(self._pairs) > MAX_PAIRS:
            del self._pairs[min(self._pairs, key=lambda pair: self._pairs[pair][0])]
        return used + size <= self._total

    def wait(self, one: PeerId, other: PeerId) -> float:
        """Seconds until a pair may be joined again; 0 when it may now."""
        began, used = self._present(one, other)
        return 0.0 if used < self._total else math.ceil(began + self._window - self._clock())

    def _present(self, one: PeerId, other: PeerId) -> tuple[float, int]:
        now = self._clock()
        began, used = self._pairs.get(frozenset((one, other)), (now, 0))
        return (began, used) if now < began + self._window else (now, 0)
