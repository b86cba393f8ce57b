"""Shares one accelerator among models: at most one is awake.

1. Only `_switch_on` changes who is awake; everything else asks it to look, by `_news`.
2. A model runs requests only while its line is open, and its line is open only while it is awake. A switch closes it, lets what
   runs end (`drain_before_switch`, `drain_timeout_secs`), puts it to sleep, then wakes the other one.
3. A switch that nobody waits for any more is not made. What an operator ordered is made in any case.
4. A wake that failed sends away who waited, bars the model for a while, and the previous model is woken again.
5. A model that could not be put to sleep may still fill the accelerator: it stays, and the other is not woken.
6. An awake model is asked every `alive_interval_secs` whether it is well; when not, it is woken again.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import trio

from mesh.errors import Busy, MeshError, NotFound, TimedOut, Unavailable
from node.multiplexer.costs import SwitchCosts
from node.multiplexer.member import Member
from node.multiplexer.meter import Meter
from node.multiplexer.policies import POLICIES, Decision, Queue, Scene

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit
    from node.multiplexer.policies import Policy
    from node.multiplexer.settings import MultiplexerSettings
    from node.multiplexer.switchable import Switchable

MAX_ORDERS = 16
"""Orders of operators that may wait."""
SHORTEST_LOOK = 0.01
LONGEST_LOOK = 5.0
"""Seconds between two looks while somebody waits and nothing happens, whatever a policy says."""

Mode = Literal["auto", "manual"]

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class _Order:
    """What an operator wants: `model` awake, or asleep."""

    model: str
    asleep: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    error: MeshError | None = None


class Multiplexer:
    """See the head of this file."""

    def __init__(
        self, backends: Sequence[Switchable], settings: MultiplexerSettings, *, policy: Policy = POLICIES["fifo"]
    ) -> None:
        self.settings = settings
        self.costs = SwitchCosts()
        self.meter = Meter()
        self.mode: Mode = "auto"
        self.pinned: str | None = None
        """In the mode `manual`: the model that is kept awake, if any."""
        self.active: Member | None = None
        self.switching: tuple[str | None, str | None] | None = None
        """From and to, while a switch is made."""
        self.changed: Callable[[], None] = lambda: None
        self.members = {
            backend.entry.id: Member(backend, max_waiting=settings.max_waiting, news=self._tell) for backend in backends
        }
        self._policy = policy
        self._orders: deque[_Order] = deque()
        self._news = trio.Event()
        self._sick = False
        self._started = False

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
        await self._order(_Order(self._known(model)))

    async def sleep(self, model: str) -> None:
        """Put a model to sleep; it wakes again when it is asked, in the mode `auto`. Raises NotFound, Busy, Unavailable."""
        await self._order(_Order(self._known(model), asleep=True))

    async def pin(self, model: str) -> None:
        """Keep a model awake until `unpin`; returns when it answers. Nothing is pinned when that fails."""
        before = self.mode, self.pinned
        self.mode, self.pinned = "manual", self._known(model)
        try:
            await self.switch(model)
        except BaseException:
            self.mode, self.pinned = before
            raise

    def set_mode(self, mode: Mode) -> None:
        """`manual`: only orders switch; `auto`: the policy does, and nothing is pinned."""
        self.mode, self.pinned = mode, None
        self._tell()

    def _known(self, model: str) -> str:
        if model not in self.members:
            raise NotFound(
                f"the multiplexer has no model {model[:200]!r}; it has {', '.join(self.members)}",
                code="model_not_found",
                param="model",
            )
        return model

    async def _order(self, order: _Order) -> None:
        if len(self._orders) >= MAX_ORDERS:
            raise Busy(f"{MAX_ORDERS} orders wait for this multiplexer already; try again", retry_after=5)
        self._orders.append(order)
        self._tell()
        try:
            await order.done.wait()
        finally:
            if order in self._orders:
                self._orders.remove(order)
        if order.error is not None:
            raise order.error

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
            await self._switch_on()

    async def _switch_on(self) -> None:
        while True:
            self._news = trio.Event()
            if self._orders:
                await self._obey(self._orders.popleft())
                continue
            if self._sick and self.active is not None:
                await self._revive(self.active)
                continue
            decision = self._decide()
            if decision.model is not None:
                await self._switch(self.members[decision.model])
                continue
            pause = min(max(decision.wait, SHORTEST_LOOK), LONGEST_LOOK)
            with trio.move_on_after(pause if self._queues() else math.inf):
                await self._news.wait()

    def _tell(self) -> None:
        self._news.set()

    async def _watch(self) -> None:
        """Ask the active model whether it is well."""
        while True:
            await trio.sleep(self.settings.alive_interval_secs)
            member = self.active
            if member is None or not member.line.is_open:
                continue
            tenure = member.tenure
            if not await self._is_alive(member) and member is self.active and member.tenure is tenure:
                logger.warning("%s is no longer well; it is woken again", member.model)
                self._sick = True
                self._tell()

    async def _is_alive(self, member: Member) -> bool:
        began = trio.current_time()
        try:
            alive = await member.backend.alive()
        except MeshError:
            alive = False
        self.meter.hooked(member.model, "alive", trio.current_time() - began, failed=not alive)
        return alive

    # Whose turn it is

    def _queues(self) -> tuple[Queue, ...]:
        """Who waits and may be served, longest waiting first."""
        now, active = trio.current_time(), self.active.model if self.active else None
        waiting = [
            member for member in self.members.values() if len(member.line) and not member.line.is_open and not member.barred
        ]
        return tuple(
            Queue(
                model=member.model,
                waiting=len(member.line),
                oldest=now - member.line.first_came,
                there=self.costs.of((active, member.model)),
                back=self.costs.of((member.model, active)) if active else 0.0,
            )
            for member in sorted(waiting, key=lambda member: member.line.first_came)
        )

    def _decide(self) -> Decision:
        if self.mode == "manual":
            return self._keep_pinned()
        queues, tenure = self._queues(), self.active.tenure if self.active else None
        if not queues or (self.active is not None and len(self.active.line)):
            return Decision(None)  # or those who were let in have not all begun yet
        if tenure is not None and (left := self.settings.min_active_secs - tenure.lasted) > 0:
            return Decision(None, left)
        return self._policy(self._scene(queues), self.settings)

    def _keep_pinned(self) -> Decision:
        member = self.members.get(self.pinned or "")
        if member is None or member is self.active:
            return Decision(None)
        return Decision(None, member.barred) if member.barred else Decision(member.model)

    def _scene(self, queues: tuple[Queue, ...]) -> Scene:
        member = self.active
        if member is None or member.tenure is None:
            return Scene(models=tuple(self.members), queues=queues)
        tenure = member.tenure
        return Scene(
            models=tuple(self.members),
            queues=queues,
            active=member.model,
            active_for=tenure.lasted,
            busy_for=tenure.busy,
            idle_for=tenure.idle,
            in_flight=member.in_flight,
            served=tenure.served,
        )

    # Switching

    async def _obey(self, order: _Order) -> None:
        member = self.members[order.model]
        try:
            if order.asleep:
                if member is self.active:
                    await self._free(None)
            elif member is not self.active:
                await self._switch(member, ordered=True)
                if member is not self.active:
                    raise member.refusal()
        except MeshError as error:
            order.error = error
        finally:
            order.done.set()

    async def _switch(self, target: Member, *, ordered: bool = False) -> None:
        """Make `target` the active model. When that fails, it is barred and the previous one is active again, if it can be."""
        previous = self.active
        self.switching = (previous.model if previous else None, target.model)
        decided = trio.current_time()
        try:
            if previous is not None and not await self._drain(previous, wanted=None if ordered else target):
                return
            began = trio.current_time()
            try:
                await self._free(target)
                await self._wake(target)
            except MeshError as error:
                self.meter.switched(self.switching[0], target.model, "failed", trio.current_time() - began)
                target.failed(error.message)
                logger.warning("%s", error.message)
                await self._fall_back(previous)
            else:
                now = trio.current_time()
                # While what runs there drains, nothing new begins: that is lost as well.
                self.costs.saw((self.switching[0], target.model), now - decided)
                self.meter.switched(self.switching[0], target.model, "done", now - began)
        finally:
            self.switching = None
            self.changed()

    async def _drain(self, member: Member, *, wanted: Member | None) -> bool:
        """Let what runs on it end. False: meanwhile all have left who waited for `wanted`, and it stays."""
        member.line.close()
        self.changed()
        limit = self.settings.drain_timeout_secs if self.settings.drain_before_switch else 0.0
        with trio.move_on_after(limit) as scope:
            while member.in_flight:
                await self._news.wait()
                self._news = trio.Event()
                if wanted is not None and not len(wanted.line):
                    member.line.open()
                    return False
        if scope.cancelled_caught or member.in_flight:
            logger.info("%d requests of %s were interrupted", member.interrupt(), member.model)
            while member.in_flight:
                await self._news.wait()
                self._news = trio.Event()
        return True

    async def _free(self, successor: Member | None) -> None:
        """Put the active model to sleep. Raises Unavailable when it cannot be; then it stays active."""
        member = self.active
        if member is None:
            return
        if successor is None:
            await self._drain(member, wanted=None)
        try:
            await self._hook(member, "sleep")
        except MeshError as error:
            member.line.open()
            raise Unavailable(f"{member.model} could not be put to sleep: {error.message}", code="sleep_failed") from error
        self.active = member.tenure = None
        self._sick = False
        self.changed()

    async def _wake(self, member: Member) -> None:
        await self._hook(member, "wake")
        self.active, self._sick = member, False
        member.woke()
        self.changed()

    async def _hook(self, member: Member, hook: Literal["wake", "sleep"]) -> None:
        began, failed = trio.current_time(), True
        try:
            await (member.backend.wake() if hook == "wake" else member.backend.sleep())
            failed = False
        finally:
            self.meter.hooked(member.model, hook, trio.current_time() - began, failed=failed)

    async def _fall_back(self, previous: Member | None) -> None:
        """After a failed wake: clear away what it left, and go on with the model before it."""
        if self.active is not None:
            return
        if self.switching is not None and self.switching[1] is not None:
            await self._clear(self.members[self.switching[1]])
        if previous is None:
            return
        try:
            await self._wake(previous)
        except MeshError as error:
            logger.warning("%s", error.message)
            previous.failed(error.message)
            await self._clear(previous)

    async def _clear(self, member: Member) -> None:
        try:
            await self._hook(member, "sleep")
        except MeshError as error:
            logger.warning("after its failed wake %s could not be put to sleep: %s", member.model, error.message)

    async def _revive(self, member: Member) -> None:
        """Wake the active model again, because it is no longer well. What runs on it ends by itself, one way or the other."""
        self._sick = False
        self.active = member.tenure = None
        member.line.close()
        self.switching = (None, member.model)
        self.changed()
        try:
            await self._wake(member)
        except MeshError as error:
            logger.warning("%s", error.message)
            member.failed(error.message)
            await self._clear(member)
        finally:
            self.switching = None
            self.changed()
