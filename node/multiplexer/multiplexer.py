"""Shares one accelerator among models: who waits gets the model's turn, one after the other.

1. A model runs requests only while its line is open, and its line is open only while it is awake.
2. One task changes who is awake (`_switch_on`): orders first, then models that are no longer well, then whose turn it is.
   Everything else asks it to look, by `news`.
3. A switch that nobody waits for any more is not made. What an operator ordered is made in any case.
4. Who is awake is asked every `alive_interval_secs` whether it is well; when not, it is woken again. Who is found awake at the
   start is taken over.
"""

from __future__ import annotations

import logging
import math
from functools import partial
from typing import TYPE_CHECKING

import trio

from mesh.errors import MeshError, NotFound, TimedOut
from node.multiplexer.accelerator import Accelerator
from node.multiplexer.costs import SwitchCosts
from node.multiplexer.member import Member
from node.multiplexer.memory import budget, free_on
from node.multiplexer.meter import Meter
from node.multiplexer.news import News
from node.multiplexer.orders import Order, Orders
from node.multiplexer.policies import POLICIES
from node.multiplexer.switch import Switch
from node.multiplexer.turns import Mode, Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit
    from node.multiplexer.member import Tenure
    from node.multiplexer.policies import Policy
    from node.multiplexer.settings import MultiplexerSettings
    from node.multiplexer.switchable import Switchable

SHORTEST_LOOK = 0.01
LONGEST_LOOK = 5.0
"""Seconds between two looks while somebody waits and nothing happens, whatever a policy says."""

logger = logging.getLogger(__name__)


class Multiplexer:
    """See the head of this file."""

    def __init__(
        self,
        backends: Sequence[Switchable],
        settings: MultiplexerSettings,
        *,
        policy: Policy = POLICIES["fifo"],
        device: str = "auto",
    ) -> None:
        """`device` is the accelerator whose free memory is the budget, where that is what the settings want."""
        self.settings = settings
        self.costs = SwitchCosts()
        self.meter = Meter()
        self.changed: Callable[[], None] = lambda: None
        self.accelerator = Accelerator()
        self._device = device
        self._news = News()
        self.members = {
            backend.entry.id: Member(backend, max_waiting=settings.max_waiting, news=self._news.tell) for backend in backends
        }
        self.adapters: dict[str, str] = {}
        """Names of adapters, by the model that they go with: an order about one is about the other."""
        self._turns = Turns(self.members, self.accelerator, self.costs, settings, policy)
        self._switch = Switch(
            self.accelerator,
            settings,
            costs=self.costs,
            meter=self.meter,
            news=self._news,
            changed=lambda: self.changed(),
            free=partial(free_on, device),
        )
        self._orders = Orders(self._news.tell)
        self._sick: dict[Member, Tenure] = {}
        self._started = False

    @property
    def active(self) -> Member | None:
        """Who woke last, of those who are awake."""
        return self.accelerator.latest

    @property
    def switching(self) -> tuple[str | None, str | None] | None:
        """From and to, while a switch is made."""
        return self._switch.under_way

    @property
    def mode(self) -> Mode:
        """`manual`: only orders switch; `auto`: the policy does."""
        return self._turns.mode

    @property
    def pinned(self) -> str | None:
        """In the mode `manual`: the model that is kept awake, if any."""
        return self._turns.pinned

    def wake_cost(self, model: str) -> float:
        """Seconds that it would take to wake a model now."""
        in_the_way = self.accelerator.in_the_way(self.members[model])
        return self.costs.of((in_the_way[0].model if in_the_way else None, model))

    # Requests

    async def infer(self, model: str, request: InferenceRequest, emit: Emit) -> None:
        """Wait for the model's turn, then run one request. Raises Unavailable, TimedOut, Busy, and what the model raises."""
        member = self.members[model]
        if member.barred and not member.line.is_open:
            raise member.refusal()
        waited = await self._turn(member)
        self.meter.waited(model, waited)
        await member.infer(request, emit)

    async def _turn(self, member: Member) -> float:
        limit = self.settings.request_timeout_secs
        with trio.move_on_after(math.inf if limit is None else limit):
            return await member.line.wait()
        raise TimedOut(
            f"{member.model} was not woken within request_timeout_secs, {limit:g} s; send the request to another node, or again",
            code="wake_timeout",
        )

    # Orders

    async def switch(self, model: str) -> None:
        """Wake a model now, whoever waits; returns when it answers. Raises NotFound, Busy, and why it cannot be woken."""
        await self._orders.give(Order(self._known(model)))

    async def sleep(self, model: str) -> None:
        """Put a model to sleep; it wakes again when it is asked, in the mode `auto`. Raises NotFound, Busy, Unavailable."""
        await self._orders.give(Order(self._known(model), asleep=True))

    async def pin(self, model: str) -> None:
        """Keep a model awake until the mode is set again; returns when it answers. Nothing is pinned when that fails."""
        turns = self._turns
        before = turns.mode, turns.pinned
        turns.mode, turns.pinned = "manual", self._known(model)
        try:
            await self.switch(model)
        except BaseException:
            turns.mode, turns.pinned = before
            raise

    def set_mode(self, mode: Mode) -> None:
        """`manual`: only orders switch; `auto`: the policy does. Nothing is pinned any more."""
        self._turns.mode, self._turns.pinned = mode, None
        self._news.tell()

    def _known(self, model: str) -> str:
        model = self.adapters.get(model, model)
        if model not in self.members:
            raise NotFound(
                f"the multiplexer has no model {model[:200]!r}; it has {', '.join(self.members)}",
                code="model_not_found",
                param="model",
            )
        return model

    def metrics(self) -> str:
        """The series of this multiplexer in Prometheus' text format."""
        return self.meter.page(
            costs=self.costs.averages,
            depths={model: len(member.line) for model, member in self.members.items()},
            running={model: member.in_flight for model, member in self.members.items()},
        )

    # Life

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the models and switch between them until cancelled. A second call only waits: one is enough for all models."""
        if self._started:
            task_status.started()
            await trio.sleep_forever()
        self._started = True
        async with trio.open_nursery() as nursery:
            for member in self.members.values():
                await nursery.start(member.backend.run)
            nursery.start_soon(self._watch)
            task_status.started()
            found = await self._found_awake()
            taken = sum(member.memory for member in found)
            self.accelerator.budget = await budget(self.settings.memory_budget, self._device, taken=taken)
            await self._switch.adopt(found)
            await self._switch_on()

    async def _found_awake(self) -> list[Member]:
        """Those that answer `alive` with yes, in the order of the configuration; each has its own time limit."""
        alive: dict[str, bool] = {}

        async def ask(member: Member) -> None:
            alive[member.model] = await self._is_alive(member)

        async with trio.open_nursery() as nursery:
            for member in self.members.values():
                nursery.start_soon(ask, member)
        return [member for member in self.members.values() if alive[member.model]]

    async def _switch_on(self) -> None:
        while True:
            self._news.clear()
            if order := self._orders.take():
                await self._obey(order)
                continue
            if self._sick:
                await self._revive(*self._sick.popitem())
                continue
            turn = self._turns.next()
            if turn.target is not None:
                await self._switch.to(turn.target, turn.makes_room)
                continue
            pause = min(max(turn.wait, SHORTEST_LOOK), LONGEST_LOOK)
            with trio.move_on_after(pause if self._turns.waited_for else math.inf):
                await self._news.wait()

    async def _obey(self, order: Order) -> None:
        member = self.members[order.model]
        try:
            await (self._sleep_ordered(member) if order.asleep else self._wake_ordered(member))
        except MeshError as error:
            order.error = error
        finally:
            order.done.set()

    async def _sleep_ordered(self, member: Member) -> None:
        if member in self.accelerator.awake:
            await self._switch.off(member)

    async def _wake_ordered(self, member: Member) -> None:
        if member in self.accelerator.awake:
            return
        makes_room = self.accelerator.in_the_way(member, last=self._turns.kept)
        await self._switch.to(member, makes_room, ordered=True)
        if member not in self.accelerator.awake:
            raise member.refusal()

    async def _revive(self, member: Member, tenure: Tenure) -> None:
        if member.tenure is tenure:  # else it slept meanwhile, and woke anew
            await self._switch.revive(member)

    async def _watch(self) -> None:
        """Ask those who are awake whether they are well."""
        while True:
            await trio.sleep(self.settings.alive_interval_secs)
            async with trio.open_nursery() as nursery:
                for member in [member for member in self.accelerator.awake if member.line.is_open]:
                    nursery.start_soon(partial(self._look_after, member))

    async def _look_after(self, member: Member) -> None:
        tenure = member.tenure
        if not await self._is_alive(member) and member.tenure is tenure and tenure is not None:
            logger.warning("%s is no longer well; it is woken again", member.model)
            self._sick[member] = tenure
            self._news.tell()

    async def _is_alive(self, member: Member) -> bool:
        began = trio.current_time()
        try:
            alive = await member.backend.alive()
        except MeshError:
            alive = False
        failed = not alive and member.tenure is not None  # one that sleeps says no as it should
        self.meter.hooked(member.model, "alive", trio.current_time() - began, failed=failed)
        return alive
