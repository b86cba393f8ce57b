"""The switch itself: drain, sleep, wake, and what to do when one of them fails.

1. Only here does anybody fall asleep or wake, one switch at a time; who is awake and not part of it goes on as before.
2. A switch closes the lines of those who make room, lets what runs end (`drain_before_switch`, `drain_timeout_secs`), puts them
   to sleep, then wakes the other one. It is given up while draining when nobody waits for it any more.
3. A wake that failed sends away who waited and bars the model for a while; what made room for it is woken again.
4. Who could not be put to sleep may still fill the accelerator: it stays awake and says why, and the other one is not woken.
5. Where memory counts and a model's is unknown, it wakes alone: what the accelerator has less afterwards is what it takes.
6. At the start, whoever is found awake stays, first of the configuration first, as far as there is room; the others are put to
   sleep in that order. One that cannot be put to sleep stays in any case, and others make room for it, last first.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Literal

import trio

from mesh.errors import MeshError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from node.multiplexer.accelerator import Accelerator
    from node.multiplexer.costs import SwitchCosts
    from node.multiplexer.member import Member
    from node.multiplexer.meter import Meter
    from node.multiplexer.news import News
    from node.multiplexer.settings import MultiplexerSettings

logger = logging.getLogger(__name__)


class Switch:
    """See the head of this file. `changed` is called after every change that others should know."""

    def __init__(
        self,
        accelerator: Accelerator,
        settings: MultiplexerSettings,
        *,
        costs: SwitchCosts,
        meter: Meter,
        news: News,
        changed: Callable[[], None],
        free: Callable[[], Awaitable[int | None]],
    ) -> None:
        """`free` measures what the accelerator has left, in bytes; None where nothing tells."""
        self.under_way: tuple[str | None, str | None] | None = None
        """From and to, while a switch is made."""
        self._accelerator = accelerator
        self._settings = settings
        self._costs = costs
        self._meter = meter
        self._news = news
        self._changed = changed
        self._free = free

    async def to(self, target: Member, makes_room: Sequence[Member], *, ordered: bool = False) -> None:
        """Wake `target`. When that fails, it is barred, and those who made room are awake again, if they can be."""
        previous = makes_room[0].model if makes_room else None
        self.under_way = (previous, target.model)
        decided = trio.current_time()
        try:
            if not await self._drain(makes_room, wanted=None if ordered else target):
                return
            began = trio.current_time()
            if await self._exchange(makes_room, target):
                now = trio.current_time()
                # While what runs there drains, nothing new begins: that is lost as well.
                self._costs.saw((previous, target.model), now - decided)
                self._meter.switched(previous, target.model, "done", now - began)
            else:
                self._meter.switched(previous, target.model, "failed", trio.current_time() - began)
        finally:
            self.under_way = None
            self._changed()

    async def off(self, member: Member) -> None:
        """Put a model to sleep that is awake. Raises Unavailable when it cannot be; then it stays awake."""
        await self._drain([member], wanted=None)
        await self._sleep(member)

    async def revive(self, member: Member) -> None:
        """Wake a model again that is no longer well. What runs on it ends by itself, one way or the other."""
        self._gone(member)
        member.line.close()
        self.under_way = (None, member.model)
        self._changed()
        try:
            await self._wake_or_bar(member)
        finally:
            self.under_way = None
            self._changed()

    async def adopt(self, found: Sequence[Member]) -> None:
        """Begin with those that are awake already, in the order of the configuration; waking them is harmless, and proves it."""
        kept: list[Member] = []
        surplus: list[Member] = []
        for member in found:
            (kept if self._fits(member, kept) else surplus).append(member)
        stuck = [member for member in surplus if not await self._lays_down(member)]
        while stuck and kept and not self._fits(kept[-1], [*stuck, *kept[:-1]]):
            member = kept.pop()
            stuck += [] if await self._lays_down(member) else [member]
        for member in [member for member in found if member in kept or member in stuck]:
            logger.info("%s was found awake and is taken over", member.model)
            why = member.last_error
            if await self._wake_or_bar(member) and member in stuck:
                member.last_error = why

    def _fits(self, member: Member, beside: Sequence[Member]) -> bool:
        return self._accelerator.together([member, *beside])

    async def _lays_down(self, member: Member) -> bool:
        """Put a model to sleep of which nobody knows how it came to be awake; whether that worked."""
        logger.info("%s was found awake as well and is put to sleep", member.model)
        try:
            await self._sleep(member)
        except MeshError as error:
            logger.warning("%s", error.message)
            return False
        return True

    async def _drain(self, members: Sequence[Member], *, wanted: Member | None) -> bool:
        """Let what runs on them end. False: meanwhile all have left who waited for `wanted`, and they stay."""
        for member in members:
            member.line.close()
        self._changed()
        limit = self._settings.drain_timeout_secs if self._settings.drain_before_switch else 0.0
        with trio.move_on_after(limit):
            while any(member.in_flight for member in members):
                await self._next_news()
                if wanted is not None and not len(wanted.line):
                    for member in members:
                        member.line.open()
                    return False
        for member in [member for member in members if member.in_flight]:
            logger.info("%d requests of %s were interrupted", member.interrupt(), member.model)
        while any(member.in_flight for member in members):
            await self._next_news()
        return True

    async def _next_news(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def _exchange(self, makes_room: Sequence[Member], target: Member) -> bool:
        """Put those to sleep and wake the other; whether that worked. Else everything is as before, as far as it can be."""
        asleep: list[Member] = []
        try:
            for member in makes_room:
                await self._sleep(member)
                asleep.append(member)
        except MeshError as error:
            logger.warning("%s", error.message)
            target.failed(error.message)
            for member in makes_room:
                if member not in asleep:
                    member.line.open()
        else:
            if await self._wake_or_bar(target):
                return True
        for member in asleep:
            await self._wake_or_bar(member)
        return False

    async def _wake_or_bar(self, member: Member) -> bool:
        """Wake a model; one that cannot be is barred, and what it left is cleared away."""
        before = await self._free() if self._has_to_measure(member) else None
        try:
            await self._hook(member, "wake")
        except MeshError as error:
            logger.warning("%s", error.message)
            member.failed(error.message)
            await self._clear(member)
            return False
        if before is not None and (after := await self._free()) is not None:
            member.measured = max(0, before - after)
        self._accelerator.enter(member)
        member.woke()
        self._changed()
        return True

    def _has_to_measure(self, member: Member) -> bool:
        return self._accelerator.budget is not None and not self._accelerator.awake and not member.memory

    async def _sleep(self, member: Member) -> None:
        try:
            await self._hook(member, "sleep")
        except MeshError as error:
            why = f"{member.model} could not be put to sleep: {error.message}"
            member.last_error = why
            if member.tenure is not None:
                member.line.open()
            raise Unavailable(why, code="sleep_failed") from error
        member.last_error = None
        self._gone(member)
        self._changed()

    async def _clear(self, member: Member) -> None:
        try:
            await self._hook(member, "sleep")
        except MeshError as error:
            logger.warning("after its failed wake %s could not be put to sleep: %s", member.model, error.message)

    def _gone(self, member: Member) -> None:
        self._accelerator.leave(member)
        member.tenure = None

    async def _hook(self, member: Member, hook: Literal["wake", "sleep"]) -> None:
        began, failed = trio.current_time(), True
        try:
            await (member.backend.wake() if hook == "wake" else member.backend.sleep())
            failed = False
        finally:
            self._meter.hooked(member.model, hook, trio.current_time() - began, failed=failed)
