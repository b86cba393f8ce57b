"""Whose turn it is: what the policy is asked, and what its answer means for those who are awake.

1. Who can wake without putting anybody to sleep is woken at once: that costs nobody anything, and no policy is asked.
2. Else those who are awake are gone through, least recently used first. The policy is asked about leaving each as if it were the
   only one; those whom it would leave, and no others, make room.
3. Nobody makes room who has been awake for less than `min_active_secs`, or whose line is still getting in.
4. In the mode `manual` only a pinned model is woken, and everybody else may make room for it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import trio

from node.multiplexer.policies import Queue, Scene

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from node.multiplexer.accelerator import Accelerator
    from node.multiplexer.costs import SwitchCosts
    from node.multiplexer.member import Member
    from node.multiplexer.policies import Policy
    from node.multiplexer.settings import MultiplexerSettings

Mode = Literal["auto", "manual"]


@dataclass(frozen=True)
class Turn:
    """Wake `target` after `makes_room` were put to sleep; without a target, ask again in `wait` seconds."""

    target: Member | None = None
    makes_room: Sequence[Member] = ()
    wait: float = math.inf


class Turns:
    """See the head of this file."""

    def __init__(
        self,
        members: Mapping[str, Member],
        accelerator: Accelerator,
        costs: SwitchCosts,
        settings: MultiplexerSettings,
        policy: Policy,
    ) -> None:
        self.mode: Mode = "auto"
        self.pinned: str | None = None
        """In the mode `manual`: the model that is kept awake, if any."""
        self._members = members
        self._accelerator = accelerator
        self._costs = costs
        self._settings = settings
        self._policy = policy

    @property
    def waited_for(self) -> list[Member]:
        """Who is waited for and may be woken, longest waiting first."""
        waiting = [
            member for member in self._members.values() if len(member.line) and not member.line.is_open and not member.barred
        ]
        return sorted(waiting, key=lambda member: member.line.first_came)

    @property
    def kept(self) -> Member | None:
        """Who is pinned."""
        return self._members.get(self.pinned or "")

    def next(self) -> Turn:
        """What to do now."""
        if self.mode == "manual":
            return self._keep_pinned()
        waiting = self.waited_for
        if not waiting:
            return Turn()
        if not self._accelerator.awake:
            return self._ask(waiting, None)
        free = next((member for member in waiting if self._accelerator.fits(member)), None)
        return Turn(free) if free is not None else self._find_room(waiting)

    def _keep_pinned(self) -> Turn:
        member = self.kept
        if member is None or member in self._accelerator.awake:
            return Turn()
        if member.barred:
            return Turn(wait=member.barred)
        return Turn(member, self._accelerator.in_the_way(member))

    def _find_room(self, waiting: Sequence[Member]) -> Turn:
        chosen: list[Member] = []
        target, wait = None, math.inf
        for member in self._accelerator.by_use():
            if len(member.line):
                continue  # those who were let in have not all begun yet, and tell when they have
            if (left := self._settings.min_active_secs - member.awake_for) > 0:
                wait = min(wait, left)
                continue
            answer = self._ask(waiting, member)
            if answer.target is None:
                wait = min(wait, answer.wait)
                continue
            target = target or answer.target
            chosen.append(member)
            if self._accelerator.fits(target, chosen):
                return Turn(target, self._accelerator.needed(target, chosen))
        return Turn(wait=wait)

    def _ask(self, waiting: Sequence[Member], active: Member | None) -> Turn:
        decision = self._policy(self._scene(waiting, active), self._settings)
        return Turn(self._members[decision.model]) if decision.model is not None else Turn(wait=decision.wait)

    def _scene(self, waiting: Sequence[Member], active: Member | None) -> Scene:
        queues = tuple(self._queue(member, active) for member in waiting)
        tenure = active.tenure if active is not None else None
        if active is None or tenure is None:
            return Scene(models=tuple(self._members), queues=queues)
        return Scene(
            models=tuple(self._members),
            queues=queues,
            active=active.model,
            active_for=tenure.lasted,
            busy_for=tenure.busy,
            idle_for=tenure.idle,
            in_flight=active.in_flight,
            served=tenure.served,
        )

    def _queue(self, member: Member, active: Member | None) -> Queue:
        return Queue(
            model=member.model,
            waiting=len(member.line),
            oldest=trio.current_time() - member.line.first_came,
            there=self._costs.of((active.model if active else None, member.model)),
            back=self._costs.of((member.model, active.model)) if active else 0.0,
        )
