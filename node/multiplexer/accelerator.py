"""Who is awake on the accelerator, and who may be awake beside them.

1. Without a budget one model is awake at a time; the first one may always be, however large.
2. With one, models are awake together as long as the memory of all is known and fits. A model whose memory nobody stated and
   nobody measured yet is awake alone.
3. Room is made by those that were used least recently.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from node.multiplexer.member import Member


class Accelerator:
    """See the head of this file."""

    def __init__(self) -> None:
        self.budget: int | None = None
        """Bytes; None = one model at a time."""
        self.awake: list[Member] = []
        """In the order in which they woke."""

    @property
    def latest(self) -> Member | None:
        """Who woke last, of those who are awake."""
        return self.awake[-1] if self.awake else None

    def enter(self, member: Member) -> None:
        """It is awake now."""
        if member not in self.awake:
            self.awake.append(member)

    def leave(self, member: Member) -> None:
        """It is asleep now, or nobody knows how it is."""
        if member in self.awake:
            self.awake.remove(member)

    def together(self, members: Sequence[Member]) -> bool:
        """Whether these may be awake at the same time."""
        if len(members) < 2:
            return True
        sizes = [member.memory for member in members]
        return self.budget is not None and all(sizes) and sum(sizes) <= self.budget

    def fits(self, target: Member, without: Collection[Member] = ()) -> bool:
        """Whether it may wake beside those who are awake, once those in `without` are not."""
        return self.together([target, *(member for member in self.awake if member not in without and member is not target)])

    def by_use(self, *, last: Member | None = None) -> list[Member]:
        """Those who are awake, least recently used first; `last` is left for the end, whenever it was used."""
        return sorted(self.awake, key=lambda member: (member is last, -member.idle_for, -member.awake_for))

    def in_the_way(self, target: Member, *, last: Member | None = None) -> Sequence[Member]:
        """Who would have to make room for it."""
        chosen: list[Member] = []
        for member in self.by_use(last=last):
            if self.fits(target, chosen):
                break
            chosen.append(member)
        return self.needed(target, chosen)

    def needed(self, target: Member, chosen: Sequence[Member]) -> Sequence[Member]:
        """The same, without those whose room is not needed because a later one's is enough."""
        left = list(chosen)
        for member in chosen:
            others = [each for each in left if each is not member]
            if self.fits(target, others):
                left = others
        return left
