"""The line of requests that wait for one model: fair between tenants, by priority within one. Data alone.

1. Start-time fair queueing: each tenant has a tag, the work that it was given since the line formed. Who has the lowest tag is
   next; one that comes anew begins at the tag of whoever was called last, so that nobody saves up and nobody is paid back.
2. Within a tenant the higher priority comes first, equals as they came. A priority never passes another tenant.
3. No tenant has more than `tenant_limit` waiting, and all together no more than `limit`. A full line makes room for a tenant with
   fewer waiting at the cost of the one with most; a tenant's own full line makes room for a higher priority.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import trio

from mesh.messages.inference import ANONYMOUS

if TYPE_CHECKING:
    from mesh.errors import MeshError


@dataclass(eq=False)
class Place:
    """One request's place: waiting, let in, or gone. `cost` is its work, in tokens."""

    tenant: str = ANONYMOUS
    priority: int = 0
    cost: float = 1.0
    number: int = 0
    state: Literal["outside", "waiting", "in", "gone"] = "outside"
    called: trio.Event = field(default_factory=trio.Event)
    """It was let in, or refused."""
    refusal: MeshError | None = None
    since: float = math.nan
    """When it was let in."""

    def refuse(self, error: MeshError) -> None:
        """It had to make room."""
        self.state, self.refusal = "gone", error
        self.called.set()


class FullLine(Exception):
    """There is no room for this place."""


def _rank(place: Place) -> tuple[int, int]:
    return (-place.priority, place.number)


class FairLine:
    """See the head of this file."""

    def __init__(self, *, limit: int, tenant_limit: int) -> None:
        self._limit = limit
        self._tenant_limit = tenant_limit
        self._lines: dict[str, list[Place]] = {}
        self._tags: dict[str, float] = {}
        self._reached = 0.0
        self._number = 0
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    @property
    def tenants(self) -> int:
        """How many have somebody waiting."""
        return len(self._lines)

    def ahead(self, tenant: str) -> int:
        """How many would be called before one more of this tenant, if all cost the same."""
        own = len(self._lines.get(tenant, ())) + 1
        return sum(min(len(line), own) for line in self._lines.values())

    def push(self, place: Place) -> Place | None:
        """Let it wait. Returns the one that had to make room and is to be refused. Raises FullLine."""
        out = self._room_for(place)
        if out is not None:
            self.remove(out)
        self._number += 1
        place.number, place.state = self._number, "waiting"
        if place.tenant not in self._lines:
            self._lines[place.tenant] = []
            self._tags[place.tenant] = max(self._reached, self._tags.get(place.tenant, 0.0))
        insort(self._lines[place.tenant], place, key=_rank)
        self._waiting += 1
        return out

    def pop(self) -> Place:
        """Who is next. The line is not empty."""
        tenant = min(self._lines, key=lambda name: (self._tags[name], self._lines[name][0].number))
        place = self._lines[tenant][0]
        self._reached = self._tags[tenant]
        self._tags[tenant] += place.cost
        self.remove(place)
        return place

    def remove(self, place: Place) -> None:
        """It waits no longer."""
        line = self._lines[place.tenant]
        del line[bisect_left(line, _rank(place), key=_rank)]
        place.state = "gone"
        self._waiting -= 1
        if not line:
            del self._lines[place.tenant]
        if not self._waiting:
            self._tags.clear()
            self._reached = 0.0
        elif len(self._tags) > 2 * self._limit:
            # Those whose tag was passed would begin there anyway.
            self._tags = {name: tag for name, tag in self._tags.items() if name in self._lines or tag > self._reached}

    def _room_for(self, place: Place) -> Place | None:
        own = self._lines.get(place.tenant, [])
        if len(own) >= self._tenant_limit:
            return self._below(place, own)
        if self._waiting < self._limit:
            return None
        longest = max(self._lines.values(), key=len, default=[])
        return longest[-1] if len(longest) > len(own) + 1 else self._below(place, own)

    @staticmethod
    def _below(place: Place, line: list[Place]) -> Place:
        if not line or line[-1].priority >= place.priority:
            raise FullLine
        return line[-1]
