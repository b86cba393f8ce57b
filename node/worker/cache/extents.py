"""Room for running sequences: each has one extent, consecutive tokens of the arena.

1. The room is cut into slabs of one full context each. A slab in use is cut into extents of one size: the context halved so and
   so many times. Extents of one size lie at equal distances, so that one attention call can serve a whole slab.
2. The lowest free place is taken first, so that what is used of a slab lies together at its beginning.
3. A full context always fits into an empty room.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Extent:
    """`capacity` tokens from `start` on: number `index` in its slab."""

    slab: int
    index: int
    start: int
    capacity: int

    @property
    def base(self) -> int:
        """Where its slab begins."""
        return self.start - self.index * self.capacity


@dataclass
class _Slab:
    """`size` is that of its extents; 0 while it is not in use."""

    number: int
    size: int = 0
    used: set[int] = field(default_factory=set)


class Extents:
    """`slabs` times `slab` tokens; no extent is smaller than `least`."""

    def __init__(self, *, slab: int, slabs: int, least: int = 128) -> None:
        self.slab = slab
        self.tokens = slab * slabs
        self._sizes = [slab]
        while self._sizes[-1] // 2 >= least:
            self._sizes.append(self._sizes[-1] // 2)
        self._count = slabs
        self.clear()

    def clear(self) -> None:
        """Nothing is taken."""
        self._slabs = [_Slab(number) for number in range(self._count)]

    def take(self, length: int) -> Extent | None:
        """An extent for at least `length` tokens; None while there is no room."""
        size = min((size for size in self._sizes if size >= length), default=None)
        if size is None:
            return None
        slab = next(self._candidates(size), None)
        if slab is None:
            return None
        slab.size = slab.size or size
        index = _first_free(slab, self.slab // slab.size)
        assert index is not None
        slab.used.add(index)
        return Extent(slab.number, index, slab.number * self.slab + index * slab.size, slab.size)

    def give(self, extent: Extent) -> None:
        """Take an extent back."""
        slab = self._slabs[extent.slab]
        slab.used.remove(extent.index)
        if not slab.used:
            slab.size = 0

    def retake(self, extent: Extent) -> None:
        """Undo a `give` that nothing followed."""
        slab = self._slabs[extent.slab]
        slab.size = extent.capacity
        slab.used.add(extent.index)

    def _candidates(self, size: int) -> Iterator[_Slab]:
        """Slabs with room: those cut to this size, then unused ones, then those cut to larger sizes."""
        open_slabs = [slab for slab in self._slabs if slab.size and _first_free(slab, self.slab // slab.size) is not None]
        yield from (slab for slab in open_slabs if slab.size == size)
        yield from (slab for slab in self._slabs if not slab.size)
        yield from sorted((slab for slab in open_slabs if slab.size > size), key=lambda slab: slab.size)


def _first_free(slab: _Slab, count: int) -> int | None:
    return next((index for index in range(count) if index not in slab.used), None)
