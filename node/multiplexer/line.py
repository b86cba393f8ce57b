"""The requests that wait for one model, in the order in which they came.

1. Nobody passes before those who came earlier; one that leaves is forgotten at once.
2. When the line opens, each who passes lets the next one go, in a step of its own: so they begin in their order.
3. Its length is bounded; one more is refused with Busy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from mesh.errors import Busy

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.errors import MeshError


class _Place:
    def __init__(self) -> None:
        self.since = trio.current_time()
        self.called = trio.Event()
        self.refusal: Callable[[], MeshError] | None = None


class Line:
    """See the head of this file. `changed` is called when somebody joins or leaves."""

    def __init__(self, model: str, *, limit: int, changed: Callable[[], None]) -> None:
        self.is_open = False
        self._model = model
        self._limit = limit
        self._changed = changed
        self._places: dict[_Place, None] = {}

    def __len__(self) -> int:
        return len(self._places)

    @property
    def first_came(self) -> float:
        """When the first of those who wait came. Only while somebody waits."""
        return next(iter(self._places)).since

    def open(self) -> None:
        """Let everybody pass, those who wait first."""
        self.is_open = True
        self._call()

    def close(self) -> None:
        """From now on everybody waits."""
        self.is_open = False

    def refuse(self, refusal: Callable[[], MeshError]) -> None:
        """Send away everybody who waits; each gets an error of its own."""
        for place in self._places:
            place.refusal = refusal
            place.called.set()

    async def wait(self) -> float:
        """Wait until it is open and all who came before have passed; the seconds that it took. Raises Busy, or a refusal."""
        if self.is_open and not self._places:
            return 0.0
        if len(self._places) >= self._limit:
            raise Busy(f"{len(self._places)} requests wait for {self._model} on this node; try again later", retry_after=5)
        place = _Place()
        self._places[place] = None
        self._changed()
        try:
            await self._called(place)
        finally:
            del self._places[place]
            self._call()
            self._changed()
        return trio.current_time() - place.since

    async def _called(self, place: _Place) -> None:
        while True:
            if place.refusal is not None:
                raise place.refusal()
            if self.is_open and next(iter(self._places)) is place:
                return
            place.called = trio.Event()
            await place.called.wait()

    def _call(self) -> None:
        if self.is_open and self._places:
            next(iter(self._places)).called.set()
