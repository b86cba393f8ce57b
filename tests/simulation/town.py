"""A simulated mesh: nodes of different speed, gateways that route by the real policies, and traffic.

1. Dispatch, router, observations and policies are the product's own; nodes, links and the clock are simulated.
2. The same seed gives the same run.
3. Heartbeats come once a second, each link at its own phase.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
import trio.testing

from gateway.dispatch import Dispatch, DispatchLimits
from gateway.routing.router import Router
from mesh.errors import MeshError
from mesh.identity import PeerId
from mesh.messages.inference import Delta, InferenceRequest
from mesh.registry import Registry
from tests.simulation.nodes import MODEL, SEPARATOR, FluidLink, FluidNode, Speed

if TYPE_CHECKING:
    from collections.abc import Collection

    from gateway.routing.snapshot import Demand
    from mesh.messages.inference import Event
    from mesh.registry import PeerView

HEARTBEAT = 1.0
ORACLE = "oracle"
LIMITS = DispatchLimits(first_token=3_600.0, stall=3_600.0, total=36_000.0)


@dataclass(frozen=True, kw_only=True)
class Town:
    """What is simulated. `load` is the share of what all nodes together can bear; sizes in tokens."""

    load: float
    policy: str = "predicted_latency"
    """A name of the product's, or `ORACLE`."""
    nodes: int = 12
    spread: float = 10.0
    slots: int = 8
    gateways: int = 1
    requests: int = 4_000
    prompt_tokens: float = 400.0
    output_tokens: float = 120.0
    links: int = 64
    beginnings: int = 0
    """Different system prompts; 0: every prompt is its own."""
    shared_tokens: int = 2_000
    """In a system prompt, beside the `prompt_tokens` of the rest."""
    cache: int = 4
    """System prompts that a node keeps."""
    seed: int = 1

    def speeds(self) -> list[Speed]:
        """From the fastest to the one that is `spread` times slower, in even steps of the logarithm."""
        factors = [self.spread ** (place / max(1, self.nodes - 1)) for place in range(self.nodes)]
        return [Speed(prefill_rate=20_000 / factor, itl=0.005 * factor, slots=self.slots, cache=self.cache) for factor in factors]

    @property
    def capacity(self) -> float:
        """Requests per second that all nodes together can bear."""
        return sum(speed.throughput(self.prompt_tokens, self.output_tokens) for speed in self.speeds())


@dataclass
class Outcome:
    """What came out: seconds from arrival to the end, per request after the first tenth."""

    latencies: list[float] = field(default_factory=list)
    first_tokens: list[float] = field(default_factory=list)
    failed: int = 0
    hits: int = 0
    """Requests whose beginning the node had in its cache, of all."""

    def latency(self, share: float) -> float:
        """A percentile of the latencies."""
        return _percentile(self.latencies, share)

    def first_token(self, share: float) -> float:
        """A percentile of the times to the first token."""
        return _percentile(self.first_tokens, share)


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def simulate(town: Town) -> Outcome:
    """Run a town to the end of its traffic."""
    clock = trio.testing.MockClock(autojump_threshold=0)
    return trio.run(_run, town, clock=clock)


async def _run(town: Town) -> Outcome:
    outcome, chance = Outcome(), random.Random(town.seed)
    nodes = [FluidNode(f"node-{place:05}", speed) for place, speed in enumerate(town.speeds())]
    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(node.run)
        gateways = [_gateway(town, nodes, nursery, random.Random(f"{town.seed}-{index}")) for index in range(town.gateways)]
        async with trio.open_nursery() as traffic:
            rate = town.load * town.capacity
            for number in range(town.requests):
                await trio.sleep(chance.expovariate(rate))
                request = _request(number, town, chance)
                counted = number >= town.requests // 10
                traffic.start_soon(_ask, gateways[number % len(gateways)], request, outcome if counted else Outcome())
        nursery.cancel_scope.cancel()
    outcome.hits = sum(node.hits for node in nodes)
    return outcome


def _gateway(town: Town, nodes: list[FluidNode], nursery: trio.Nursery, chance: random.Random) -> Dispatch:
    registry = Registry(PeerId("gateway"), mesh="default")
    known = nodes if len(nodes) <= town.links else chance.sample(nodes, town.links)
    for node in known:
        link = FluidLink(node, rtt=chance.uniform(0.001, 0.020))
        registry.linked(link)  # type: ignore[arg-type]
        nursery.start_soon(_beat, link, chance.random())
    if town.policy == ORACLE:
        return Dispatch(Oracle(registry), limits=LIMITS)
    return Dispatch(Router(registry, draw=chance.random, strategy=town.policy), limits=LIMITS)


async def _beat(link: FluidLink, phase: float) -> None:
    await trio.sleep(phase * HEARTBEAT)
    while True:
        link.load = {MODEL: link.node.load}
        await trio.sleep(HEARTBEAT)


def _request(number: int, town: Town, chance: random.Random) -> InferenceRequest:
    prompt = min(8_000, max(8, round(chance.lognormvariate(0, 0.8) * town.prompt_tokens / 1.377)))
    output = min(2_000, max(2, round(chance.expovariate(1 / town.output_tokens))))
    text = _beginning(town, chance) + "abcd" * prompt
    return InferenceRequest(request_id=str(number), model=MODEL, task="completion", prompt=text, seed=output)


def _beginning(town: Town, chance: random.Random) -> str:
    if not town.beginnings:
        return ""
    return f"{chance.randrange(town.beginnings):04}" * town.shared_tokens + SEPARATOR


class Oracle(Router):
    """Knows how long each answer will be and what every node works on; only the future arrivals it does not know."""

    request: InferenceRequest

    def choose(self, model: str, *, demand: Demand, without: Collection[PeerId] = ()) -> PeerView | None:
        """The node that would finish the request first."""
        views = [view for view in self.registry.nodes(model) if view.peer_id not in without]
        return min(views, key=self._finish, default=None)

    def _finish(self, view: PeerView) -> float:
        link = view.link
        assert isinstance(link, FluidLink)
        return link.rtt + link.node.until_done(len(str(self.request.prompt)) // 4, self.request.seed)


async def _ask(dispatch: Dispatch, request: InferenceRequest, outcome: Outcome) -> None:
    began = trio.current_time()

    def emit(event: Event) -> None:
        if isinstance(event, Delta) and event.offset == 0:
            outcome.first_tokens.append(trio.current_time() - began)

    if isinstance(dispatch.router, Oracle):
        dispatch.router.request = request
    try:
        await dispatch.infer(request, emit)
    except MeshError:
        outcome.failed += 1
    else:
        outcome.latencies.append(trio.current_time() - began)
