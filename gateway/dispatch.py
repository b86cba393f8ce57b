"""Dispatch: an inference service that finds a node for each request, and another one when that fails.

1. A request that a node fails goes to the next node in the policy's order. Where tokens were given already, that node goes on
   behind them; where the service knows no tokens, behind the text, if it can. Where it cannot, or the client wants none of it, a
   loss is `stream_interrupted`, unless the client has seen nothing yet.
2. A client sees exactly one end: `Done`, or one error; and no `Delta` twice.
3. A request does not fail for a node's sake while another node is ready, unless it failed on `max_failures` of them.
4. No node is waited for longer than `queue_wait`, none that loads the model longer than `loading_wait`, no first token longer
   than `first_token`, no next one longer than `stall`, and nothing longer than `total`.
5. Cancelling `infer` cancels the request on its node.
6. Starting over is paid from a budget, one for failures and one for nodes that were full: a share of the requests. Going on
   behind what was given is free. Where every request fails, the nodes get little more than every request once.
7. What happens to a request is told to its `Course`, whose table says what can happen next.
"""

from __future__ import annotations

import logging
import secrets
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from gateway.absence import is_loading
from gateway.attempt import Attempt
from gateway.budget import Budget
from gateway.delivery import Delivery
from gateway.hedging import Hedging, Race, has_room
from gateway.models import KnownModels
from gateway.nonsense import IN_ANSWERS, most_tokens
from gateway.routing.demand import demand_of
from gateway.routing.filters import refuse_task
from gateway.routing.snapshot import entry_of
from gateway.search import Search, interrupted, is_begun, is_failure, may_retry
from gateway.stall import StallWatch
from mesh.errors import MeshError, TimedOut, Unavailable
from mesh.messages.link import Attach
from mesh.openai.remote.continuing import can_be_continued
from mesh.service import paced

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from gateway.course import Step
    from gateway.routing.router import Router
    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.loopback import Loopback
    from mesh.messages.inference import InferenceRequest
    from mesh.registry import PeerView, RegistryEvent
    from mesh.service import Emit

KEEP_BYTES = 16
"""Of the secret under which a node keeps a stream: nobody guesses it."""
POLL = 0.1
"""Seconds between two looks at the heartbeats while no node is ready; changes of records are told at once."""

logger = logging.getLogger(__name__)

RETRY_SHARE = 0.2
RETRIES_PER_SECOND = 10.0
RETRY_BURST = 1024.0
"""As many as one gateway has under way: whatever a node takes with it when it dies may be tried elsewhere at once."""
BUSY_SHARE = 1.0

Outcome = Literal["succeeded", "failed", "cancelled"]


ENDINGS: dict[Outcome, Step] = {"succeeded": "ended", "failed": "gave_up", "cancelled": "client_left"}


@dataclass(frozen=True, kw_only=True)
class DispatchLimits:
    """Bounds of one request; times in seconds."""

    max_failures: int = 4
    queue_wait: float = 2.0
    loading_wait: float = 30.0
    hedge: bool = False
    """Hedge requests that say nothing about it, too."""
    first_token: float = 30.0
    stall: float = 60.0
    total: float = 1800.0
    resume_wait: float = 30.0
    """As `queue_wait`, for an answer that has begun: its client would lose more than the wait."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """That a request started or finished; what it said stays out of it."""

    event: Literal["started", "finished"]
    request: InferenceRequest
    delivery: Delivery
    outcome: Outcome | None = None
    seconds: float = 0.0


@dataclass
class Totals:
    """Requests since the start, each counted once however many nodes it took."""

    requests: int = 0
    succeeded: int = 0
    failed: int = 0
    cancelled: int = 0
    retried: int = 0
    resumed: int = 0
    stalled: int = 0
    """Attempts that were given up because their node did nothing."""
    picked_up: int = 0
    """Streams of other gateways, or of connections that were lost."""
    not_found: int = 0
    """Streams that were asked for and are not there, or somebody else's."""
    seconds: float = 0.0

    @property
    def in_flight(self) -> int:
        """Requests that have not ended."""
        return self.requests - self.succeeded - self.failed - self.cancelled


class Dispatch:
    """See the head of this file. `listeners` hear of every start and end; they must not block."""

    def __init__(self, router: Router, *, limits: DispatchLimits | None = None) -> None:
        self.router = router
        self.models = KnownModels(router.registry)
        self.totals = Totals()
        self.listeners: list[Callable[[Notice], None]] = []
        self.stalls = StallWatch()
        """Its `run` must be running for a node that hangs to be given up before `DispatchLimits.stall`."""
        self._limits = limits or DispatchLimits()
        self.hedging = Hedging(always=self._limits.hedge)
        self.retries = Budget(share=RETRY_SHARE, per_second=RETRIES_PER_SECOND, most=RETRY_BURST)
        self.busy_retries = Budget(share=BUSY_SHARE, per_second=RETRIES_PER_SECOND, most=RETRY_BURST)
        self.under_way: set[Delivery] = set()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request on the best node; see the head for retries and limits. Raises MeshError."""
        request = msgspec.structs.replace(request, model=self.models.resolve(request.model))
        if request.stream and request.resume and request.task != "embedding":
            request = msgspec.structs.replace(request, keep=secrets.token_bytes(KEEP_BYTES))
        await self._run(request, _delivery(request, emit))

    async def pick_up(self, request: InferenceRequest, emit: Emit, *, keeper: PeerId, ended: Iterable[int]) -> None:
        """Go on with a request of another gateway, behind its `prior`; `keeper` has what follows. Raises as `infer`."""
        delivery = _delivery(request, emit)
        view = self.router.registry.peers.get(keeper)
        entry = entry_of(view, request.model) if view is not None else None
        delivery.pick_up(request.prior, ended, keeper, entry.numerics if entry is not None else "")
        await self._run(request, delivery)

    async def _run(self, request: InferenceRequest, delivery: Delivery) -> None:
        started = trio.current_time()
        self.totals.requests += 1
        self.under_way.add(delivery)
        for budget in (self.retries, self.busy_retries, self.hedging.budget):
            budget.deposit()
        self._tell(Notice(event="started", request=request, delivery=delivery))
        outcome: Outcome = "cancelled"
        try:
            await self._within_total(request, delivery)
        except Exception:
            outcome = "failed"
            raise
        finally:
            outcome = "succeeded" if delivery.ended else outcome
            delivery.course.take(ENDINGS[outcome])
            self.under_way.discard(delivery)
            if delivery.begun_at is not None:
                self.hedging.first_tokens.saw(request.model, delivery.begun_at - started)
            if delivery.done is not None and request.task != "embedding":
                self.router.lengths.saw(request.model, delivery.done.usage.completion_tokens)
            seconds = trio.current_time() - started
            self._count(outcome, delivery, seconds)
            self._tell(Notice(event="finished", request=request, delivery=delivery, outcome=outcome, seconds=seconds))

    def _tell(self, notice: Notice) -> None:
        for listener in self.listeners:
            listener(notice)

    def _count(self, outcome: Outcome, delivery: Delivery, seconds: float) -> None:
        setattr(self.totals, outcome, getattr(self.totals, outcome) + 1)
        self.totals.retried += delivery.attempts > 1
        self.totals.resumed += delivery.resumes > 0
        self.totals.stalled += delivery.stalls
        self.totals.seconds += seconds

    async def _within_total(self, request: InferenceRequest, delivery: Delivery) -> None:
        seconds = self._limits.total
        if request.deadline_ms is not None:
            seconds = min(seconds, request.deadline_ms / 1000)
        delivery.deadline = trio.current_time() + seconds
        with trio.move_on_at(delivery.deadline):
            await self._search(request, delivery)
        if not delivery.ended:
            raise TimedOut(f"the request took longer than its limit of {seconds:g} s", code="request_timeout")

    async def _search(self, request: InferenceRequest, delivery: Delivery) -> None:
        limits = self._limits
        search = Search(
            request.model,
            demand_of(request),
            patience=limits.queue_wait,
            loading_patience=limits.loading_wait,
            max_failures=limits.max_failures,
        )
        # No node needs to know from where it came.
        request = msgspec.structs.replace(request, client="")
        while True:
            node = self._back_to(delivery, search) or await self._another(request, search)
            before = delivery.progress
            lost = await self._let_answer(node, request, delivery, search)
            if lost is None:
                return
            node, error = lost
            logger.info("request %s: %s could not answer (%s)", request.request_id, node.record.name, error.code)
            if delivery.keeper == node.peer_id and error.code != "link_lost":
                delivery.keeper = None
            request = self._after(error, search, request, delivery)
            delivery.course.take("go_on" if is_begun(request) else "start_over")
            if delivery.progress > before:
                search.advanced(node.peer_id, error, patience=limits.resume_wait)
            else:
                search.failed(node.peer_id, error)
                self._pay(error, request, search)

    def _pay(self, error: MeshError, request: InferenceRequest, search: Search) -> None:
        """Raises what the client is told when too many requests start over already."""
        budget = self.retries if is_failure(error) else self.busy_retries
        if not is_begun(request) and not budget.withdraw():
            raise search.verdict()

    async def _let_answer(
        self, node: PeerView, request: InferenceRequest, delivery: Delivery, search: Search
    ) -> tuple[PeerView, MeshError] | None:
        """Let a node answer, or two where the first is late. None when the answer is complete; else who was lost, and how."""

        async def attempt(node: PeerView, race: Race | None = None) -> None:
            await self._attempt(node, request, delivery, search, race)

        patience = None if is_begun(request) else self.hedging.patience(request)
        if patience is None:
            try:
                await attempt(node)
            except MeshError as error:
                return node, error
            return None
        lost = await self.hedging.race(node, attempt, partial(self._others, node, search), delivery, patience)
        if not lost:
            return None
        for loser, why in lost[:-1]:
            search.failed(loser.peer_id, why)
        return lost[-1]

    def _others(self, node: PeerView, search: Search) -> list[PeerView]:
        """Who could take the request beside this node, at once, best first."""
        ranked = self.router.rank(search.model, demand=search.demand, without={*search.tried, node.peer_id})
        return [self.router.registry.peers[item.candidate.peer_id] for item in ranked if has_room(item.candidate)]

    @staticmethod
    def _after(error: MeshError, search: Search, request: InferenceRequest, delivery: Delivery) -> InferenceRequest:
        """What the next node is asked. Raises what the client is told when there is nothing to ask."""
        if not may_retry(error):
            raise error
        if delivery.can_go_on:
            search.numerics = delivery.numerics
            return delivery.going_on(request)
        if delivery.can_continue:
            search.demand = replace(search.demand, behind_text=True)
            delivery.keeper = None
            return delivery.continuing(request)
        if delivery.started:
            raise interrupted(error) from error
        return msgspec.structs.replace(request, prior=[])

    def _back_to(self, delivery: Delivery, search: Search) -> PeerView | None:
        """The node that has the answer already, when there is a link to it again."""
        view = self.router.registry.peers.get(delivery.keeper) if delivery.keeper is not None else None
        if view is None or view.link is None or view.link.closed.is_set() or search.exhausted:
            return None
        return view

    async def _another(self, request: InferenceRequest, search: Search) -> PeerView:
        try:
            return await self._next_node(search)
        except MeshError as error:
            if request.said is None:
                raise
            raise interrupted(error) from error

    async def _next_node(self, search: Search) -> PeerView:
        """The best node that was not tried. Waits a little for one when all that could answer are away."""
        if search.exhausted:
            raise search.verdict()
        node = self._choose(search)
        if node is None:
            refuse_task(self.router.registry.nodes(search.model), search.model, search.demand.task)
        if node is None and search.worth_waiting:
            node = await self._wait_for_node(search)
        if node is None:
            raise search.verdict(self.router.registry.nodes(search.model))
        return node

    def _choose(self, search: Search) -> PeerView | None:
        return self.router.choose(search.model, demand=search.demand, without=search.tried, numerics=search.numerics)

    async def _wait_for_node(self, search: Search) -> PeerView | None:
        changed = trio.Event()

        def listen(event: RegistryEvent) -> None:
            search.tried.discard(event.peer.peer_id)
            changed.set()

        started = trio.current_time()
        unsubscribe = self.router.registry.subscribe(listen)
        try:
            while (node := self._choose(search)) is None:
                patience = search.patience
                if is_loading(self.router.registry.nodes(search.model), search.model):
                    patience = max(patience, search.loading_patience)
                if (left := started + patience - trio.current_time()) <= 0:
                    break
                with trio.move_on_after(min(POLL, left)):
                    await changed.wait()
                changed = trio.Event()
        finally:
            unsubscribe()
            search.waited(trio.current_time() - started)
        return node

    async def _attempt(
        self, node: PeerView, request: InferenceRequest, delivery: Delivery, search: Search, race: Race | None = None
    ) -> None:
        """Let one node answer. Raises what it raised, or TimedOut; returns once `Done` was delivered."""
        if node.link is None:
            raise Unavailable(f"the link to {node.record.name} was lost", code="link_lost")
        seen = self.router.observations.of(node.link.peer_id, request.model)
        entry = entry_of(node, request.model)
        attempt = Attempt(
            node.link.peer_id,
            delivery,
            seen,
            first_token=self._limits.first_token,
            may_sleep=entry is not None and entry.wake_seconds > 0,
            stall=self._limits.stall,
            numerics=entry.numerics if entry is not None else "",
            resumes=is_begun(request),
            continues=entry is not None and entry.capabilities.continues and can_be_continued(request),
            attaches=delivery.keeper == node.peer_id,
            race=race,
        )
        delivery.most = most_tokens(request, entry)
        spare = partial(self._has_spare, search, node, delivery)
        request = _with_time_left(request, delivery)
        delivery.attempts += 1
        seen.begin(trio.current_time())
        try:
            with attempt.scope, self.stalls.watching(attempt, node.link, request.model, delivery, seen, spare):
                await self._ask(node.link, request, delivery, paced(attempt.emit, attempt.room))
            attempt.check()
        except MeshError as error:
            if delivery.ended:
                return
            if is_failure(error):
                seen.fail(trio.current_time())
            if error.code in IN_ANSWERS:
                seen.fault(error.code)
            raise
        finally:
            seen.end()
            if race is not None:
                race.leave(attempt)

    def _has_spare(self, search: Search, node: PeerView, delivery: Delivery) -> bool:
        """Whether another node than this one could go on."""
        demand = replace(search.demand, behind_text=search.demand.behind_text or delivery.can_continue)
        others = self.router.rank(search.model, demand=demand, without={node.peer_id, *search.tried})
        return bool(others) and (not delivery.started or delivery.can_go_on or delivery.can_continue)

    @staticmethod
    async def _ask(link: Link | Loopback, request: InferenceRequest, delivery: Delivery, emit: Emit) -> None:
        if delivery.keeper == link.peer_id:
            await link.attach(Attach(keep=request.keep, tenant=request.tenant, tokens=delivery.tokens), emit)
        else:
            await link.infer(request, emit)


def _delivery(request: InferenceRequest, emit: Emit) -> Delivery:
    return Delivery(emit, streamed=request.stream, resumable=request.resume, keep=request.keep, choices=request.n)


def _with_time_left(request: InferenceRequest, delivery: Delivery) -> InferenceRequest:
    if request.deadline_ms is None:
        return request
    return msgspec.structs.replace(request, deadline_ms=max(1, round((delivery.deadline - trio.current_time()) * 1000)))
