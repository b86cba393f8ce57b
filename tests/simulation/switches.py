"""A simulated accelerator that several models share: the real multiplexer and policies on a simulated clock.

`python -m tests.simulation switches`: every policy on four traces, with two and four models and switches of 2 to 40 s.

1. Only the models and the clock are simulated: a request takes its time on one of SLOTS, waking and sleeping take theirs.
2. A policy's figures come from the same arrivals as the others', and the same seed gives the same run.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio
import trio.testing

from mesh.messages.inference import InferenceRequest
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry
from node.backends.base import BackendStatus, nobody_listens
from node.multiplexer.multiplexer import Multiplexer
from node.multiplexer.policies import POLICIES
from node.multiplexer.settings import MultiplexerSettings
from tests.figures import Figure, quantile, report, write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mesh.service import Emit

SLOTS = 32
SERVICE = 1.0
"""Seconds of work in a request, on average."""
RATE = 3.0
"""Requests per second, all models together."""
DURATION = 900.0
BURST = 4
"""Requests."""
TRACES = ("dominant", "balanced", "bursty", "interleaved")
MODELS = (2, 4)
COSTS = (2.0, 5.0, 10.0, 20.0, 40.0)
SEEDS = (1, 2)
LIMIT = 0.5
"""Of FIFO's switching time, at most, on balanced and bursty."""
NEVER_OVER = 1.05


@dataclass(frozen=True)
class Arrival:
    """One request: when, for which model, and how long it takes. Seconds."""

    at: float
    model: str
    work: float


def arrivals(trace: str, models: int, seed: int, duration: float = DURATION) -> list[Arrival]:
    """The requests of one trace."""
    draws = random.Random(f"{trace} {models} {seed}")
    times: Iterator[tuple[float, int]] = {
        "dominant": _dominant,
        "balanced": _balanced,
        "bursty": _bursty,
        "interleaved": _interleaved,
    }[trace](draws, models, duration)
    return sorted(
        (Arrival(at, f"model-{which}", min(5.0, 0.2 + draws.expovariate(1 / (SERVICE - 0.2)))) for at, which in times),
        key=lambda arrival: arrival.at,
    )


def _dominant(draws: random.Random, models: int, duration: float) -> Iterator[tuple[float, int]]:
    for at in _poisson(draws, RATE, duration):
        yield at, 0 if draws.random() < 0.9 else draws.randrange(1, models)


def _balanced(draws: random.Random, models: int, duration: float) -> Iterator[tuple[float, int]]:
    for at in _poisson(draws, RATE, duration):
        yield at, draws.randrange(models)


def _bursty(draws: random.Random, models: int, duration: float) -> Iterator[tuple[float, int]]:
    """BURST requests for one model within a second, then as many for any model, at random times."""
    for start in _poisson(draws, RATE / BURST, duration):
        which = draws.randrange(models)
        yield from ((start + draws.uniform(0, 1), which) for _ in range(BURST))


def _interleaved(draws: random.Random, models: int, duration: float) -> Iterator[tuple[float, int]]:
    count = int(duration * RATE)
    yield from ((number / RATE, number % models) for number in range(count))


def _poisson(draws: random.Random, rate: float, duration: float) -> Iterator[float]:
    at = draws.expovariate(rate)
    while at < duration:
        yield at
        at += draws.expovariate(rate)


class SimulatedModel:
    """A `Switchable` that only takes time."""

    gives_tokens = True

    def __init__(self, model: str, cost: float, began: Callable[[str], None]) -> None:
        self.entry = ModelEntry(id=model, state="ready")
        self.load = ModelLoad("ready", slots=SLOTS)
        self.changed = nobody_listens
        self.memory = 0
        self._awake = False
        self._cost = cost
        self._began = began
        self._slots = trio.CapacityLimiter(SLOTS)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        async with self._slots:
            self._began(request.request_id)
            await trio.sleep(float(request.prompt or 0))  # type: ignore[arg-type]

    async def wake(self) -> None:
        await trio.sleep(0.8 * self._cost)
        self._awake = True

    async def sleep(self) -> None:
        await trio.sleep(0.2 * self._cost)
        self._awake = False

    async def alive(self) -> bool:
        return self._awake

    def status(self) -> BackendStatus:
        return BackendStatus(state="ready", running=True)


@dataclass
class Outcome:
    """What one run cost. Seconds."""

    switches: int = 0
    switching: float = 0.0
    serving: float = 0.0
    lasted: float = 0.0
    waits: list[float] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        self.switches += other.switches
        self.switching += other.switching
        self.serving += other.serving
        self.lasted += other.lasted
        self.waits += other.waits

    def row(self) -> str:
        """Cells of the table."""
        return (
            f"{self.switches} | {self.switching:.0f} | {quantile(self.waits, 0.5):.1f} | {quantile(self.waits, 0.95):.1f}"
            f" | {self.serving / self.lasted:.0%}"
        )


def simulate(trace: str, policy: str, *, models: int, cost: float, seed: int, duration: float = DURATION) -> Outcome:
    """One run from the first arrival to the last end."""
    outcome = Outcome()
    trio.run(
        _run,
        outcome,
        arrivals(trace, models, seed, duration),
        policy,
        models,
        cost,
        clock=trio.testing.MockClock(autojump_threshold=0),
    )
    return outcome


async def _run(outcome: Outcome, requests: list[Arrival], policy: str, models: int, cost: float) -> None:
    began: dict[str, float] = {}
    backends = [
        SimulatedModel(f"model-{number}", cost, lambda request_id: began.__setitem__(request_id, trio.current_time()))
        for number in range(models)
    ]
    multiplexer = Multiplexer(backends, MultiplexerSettings(alive_interval_secs=600), policy=POLICIES[policy])
    zero, running, edge = trio.current_time(), 0, 0.0

    async def one(number: int, arrival: Arrival) -> None:
        nonlocal running, edge
        await trio.sleep_until(zero + arrival.at)
        request = InferenceRequest(request_id=str(number), model=arrival.model, task="completion", prompt=str(arrival.work))
        await multiplexer.infer(arrival.model, request, lambda _: None)
        outcome.waits.append(began[str(number)] - zero - arrival.at)

    async with trio.open_nursery() as outer:
        await outer.start(multiplexer.run)
        async with trio.open_nursery() as nursery:
            for number, arrival in enumerate(requests):
                nursery.start_soon(one, number, arrival)
        outer.cancel_scope.cancel()
    outcome.lasted = trio.current_time() - zero
    outcome.switches = multiplexer.meter.switching.count
    outcome.switching = multiplexer.meter.switching.total
    outcome.serving = _union([(began[str(number)], began[str(number)] + arrival.work) for number, arrival in enumerate(requests)])


def _union(spans: list[tuple[float, float]]) -> float:
    """In how many seconds at least one request was being worked on."""
    total, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total


HEAD = "| trace | models | a switch | policy | switches | switching, s | wait p50, s | wait p95, s | serving | of FIFO's |"


def main(*, publish: bool) -> int:
    """Print the table, then what missed its target; the exit code says whether anything did."""
    rows = [HEAD, "| --- " * (HEAD.count("|") - 1) + "|"]
    print(*rows, sep="\n")
    found: list[Figure] = []
    for trace in TRACES:
        for models in MODELS:
            for cost in COSTS:
                shares, told = _compare(trace, models, cost)
                print(*told, sep="\n", flush=True)
                rows += told
                found.append(_judged(f"{trace}, {models} models, {cost:g} s", trace, shares))
    if publish:
        write(found, mark="simulation switches", file="simulation-switches.json", before="\n".join(rows))
    return report(found)


def _compare(trace: str, models: int, cost: float) -> tuple[dict[str, float], list[str]]:
    """Of FIFO's switching time, by policy; and the rows of the table."""
    outcomes = {}
    for policy in POLICIES:
        outcomes[policy] = Outcome()
        for seed in SEEDS:
            outcomes[policy].add(simulate(trace, policy, models=models, cost=cost, seed=seed))
    shares = {policy: outcome.switching / outcomes["fifo"].switching for policy, outcome in outcomes.items()}
    rows = [
        f"| {trace} | {models} | {cost:g} s | {policy} | {outcome.row()} | {shares[policy]:.2f} |"
        for policy, outcome in outcomes.items()
    ]
    return shares, rows


def _judged(what: str, trace: str, shares: dict[str, float]) -> Figure:
    limit = LIMIT if trace in ("balanced", "bursty") else NEVER_OVER
    return Figure(f"{what}: time that cost_aware spends switching, of FIFO's", shares["cost_aware"], "x", limit)
