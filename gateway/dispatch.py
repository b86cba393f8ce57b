"""Dispatch: an inference service that finds a node for each request, and another one when that fails.

1. A request that a node fails goes to the next node in the policy's order. Where tokens were given already, that node goes on
   behind them; where it cannot, because the service knows no tokens or the client wants none of it, a loss is
   `stream_interrupted`, unless the client has seen nothing yet.
2. A client sees exactly one end: `Done`, or one error; and no `Delta` twice.
3. A request does not fail for a node's sake while another node is ready, unless it failed on `max_failures` of them.
4. No node is waited for longer than `queue_wait`, no first token longer than `first_token`, no next one longer than `stall`,
   and nothing longer than `total`.
5. Cancelling `infer` cancels the request on its node.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from gateway.attempt import Attempt
from gateway.delivery import Delivery
from gateway.models import KnownModels
from gateway.routing.demand import demand_of
from gateway.routing.filters import refuse_task
from gateway.routing.snapshot import entry_of
from gateway.search import Search, interrupted, is_failure, may_retry
from mesh.errors import MeshError, TimedOut, Unavailable
from mesh.service import paced

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.routing.router import Router
    from mesh.messages.inference import InferenceRequest
    from mesh.registry import PeerView, RegistryEvent
    from mesh.service import Emit

POLL = 0.1
"""Seconds between two looks at the heartbeats while no node is ready; changes of records are told at once."""

logger = logging.getLogger(__name__)

Outcome = Literal["succeeded", "failed", "cancelled"]


@dataclass(frozen=True, kw_only=True)
class DispatchLimits:
    """Bounds of one request; times in seconds."""

    max_failures: int = 4
    queue_wait: float = 2.0
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
        self._limits = limits or DispatchLimits()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request on the best node; see the head for retries and limits. Raises MeshError."""
        request = msgspec.structs.replace(request, model=self.models.resolve(request.model))
        delivery, started = Delivery(emit, streamed=request.stream, resumable=request.resume), trio.current_time()
        self.totals.requests += 1
        self._tell(Notice(event="started", request=request, delivery=delivery))
        outcome: Outcome = "cancelled"
        try:
            await self._within_total(request, delivery)
        except Exception:
            outcome = "failed"
            raise
        finally:
            outcome = "succeeded" if delivery.ended else outcome
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
        search = Search(request.model, demand_of(request), patience=limits.queue_wait, max_failures=limits.max_failures)
        while True:
            node = await self._next_node(search)
            before = delivery.tokens
            try:
                await self._attempt(node, request, delivery)
            except MeshError as error:
                logger.info("request %s: %s could not answer (%s)", request.request_id, node.record.name, error.code)
                request = self._after(error, search, request, delivery)
                if delivery.tokens > before:
                    search.advanced(node.peer_id, error, patience=limits.resume_wait)
                else:
                    search.failed(node.peer_id, error)
            else:
                return

    @staticmethod
    def _after(error: MeshError, search: Search, request: InferenceRequest, delivery: Delivery) -> InferenceRequest:
        """What the next node is asked. Raises what the client is told when there is nothing to ask."""
        if not may_retry(error):
            raise error
        if delivery.can_go_on:
            search.numerics = delivery.numerics
            return delivery.going_on(request)
        if delivery.started:
            raise interrupted(error) from error
        return msgspec.structs.replace(request, prior=[])

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
            raise search.verdict()
        return node

    def _choose(self, search: Search) -> PeerView | None:
        return self.router.choose(search.model, demand=search.demand, without=search.tried, numerics=search.numerics)

    async def _wait_for_node(self, search: Search) -> PeerView | None:
        changed = trio.Event()

        def listen(event: RegistryEvent) -> None:
            search.tried.discard(event.peer.peer_id)
            changed.set()

        started, node = trio.current_time(), None
        unsubscribe = self.router.registry.subscribe(listen)
        try:
            with trio.move_on_after(search.patience):
                while (node := self._choose(search)) is None:
                    with trio.move_on_after(POLL):
                        await changed.wait()
                    changed = trio.Event()
        finally:
            unsubscribe()
            search.patience -= trio.current_time() - started
        return node

    async def _attempt(self, node: PeerView, request: InferenceRequest, delivery: Delivery) -> None:
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
            stall=self._limits.stall,
            numerics=entry.numerics if entry is not None else "",
            resumes=bool(request.prior),
        )
        request = _with_time_left(request, delivery)
        delivery.attempts += 1
        seen.begin(trio.current_time())
        try:
            with attempt.scope:
                await node.link.infer(request, paced(attempt.emit, attempt.room))
            attempt.check()
        except MeshError as error:
            if delivery.ended:
                return
            if is_failure(error):
                seen.fail(trio.current_time())
            raise
        finally:
            seen.end()


def _with_time_left(request: InferenceRequest, delivery: Delivery) -> InferenceRequest:
    if request.deadline_ms is None:
        return request
    return msgspec.structs.replace(request, deadline_ms=max(1, round((delivery.deadline - trio.current_time()) * 1000)))
