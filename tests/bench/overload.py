"""Three times as many requests as the mesh can answer: how many are answered all the same, how fast the others are refused, and
how soon all is well again afterwards.

Real processes: one gateway, NODES mock nodes with a few slots each. The peak is what clients that always ask get at most.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil

from tests.bench.load import Load, Run, poisson
from tests.figures import Figure, quantile
from tests.fleet import until

if TYPE_CHECKING:
    import httpx2

    from tests.fleet import Fleet, Program

NODES = 3
SLOTS = 4
KNOBS = f"slots={SLOTS};first_token_ms=40;tokens_per_second=100;length=12"
"""About 0.15 s a request: 26 a second on each node."""
OVERLOAD = 3.0
CALM = 0.5
WARM_UP = 2.0
GENERATOR = 0.25
"""The share of a core that the generator may cost."""
MAX_WAIT = 1.0


async def overload(fleet: Fleet, http: httpx2.AsyncClient, *, seconds: float = 60.0) -> list[Figure]:
    gateway = await fleet.gateway("--no-mdns", "--max-wait", str(MAX_WAIT))
    nodes = [await fleet.mock(f"m;{KNOBS}", "--no-mdns", "--bootstrap", gateway.address) for _ in range(NODES)]

    async def served() -> bool:
        peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
        return sum(bool(peer["models"]) and peer["linked"] for peer in peers) == NODES

    await until(served)
    load = Load(gateway.url, {"model": "m", "prompt": "hello"})
    await load.keep(NODES * SLOTS, WARM_UP)
    peak = await measured_peak(load, seconds=max(5.0, seconds / 6))
    calm = await load.arrive(poisson(CALM * peak, seed=1), max(4.0, seconds / 10))
    before = cpu_seconds(gateway)
    storm = await load.arrive(poisson(OVERLOAD * peak, seed=2), seconds)
    spent = cpu_seconds(gateway) - before
    after = await load.arrive(poisson(CALM * peak, seed=3), max(6.0, seconds / 10))
    await load.close()
    for program in (*nodes, gateway):
        await program.stop()
    return [
        *figures(peak, calm, storm, after),
        Figure("overload: gateway", spent / storm.seconds, "cores"),
        Figure("overload: gateway's CPU for a request, answered or refused", 1e6 * spent / len(storm.answers), "us"),
    ]


def cpu_seconds(program: Program) -> float:
    """What the program has used so far."""
    times = psutil.Process(program.process.pid).cpu_times()
    return float(times.user + times.system)


async def measured_peak(load: Load, *, seconds: float) -> float:
    """Answers per second when a few more clients than there are slots always ask."""
    run = await load.keep(NODES * (SLOTS + 1), seconds)
    return run.rate(200, since=1.0, until=seconds)


def figures(peak: float, calm: Run, storm: Run, after: Run) -> list[Figure]:
    # The first seconds fill the line; what is out after the last arrival is the line running empty.
    goodput = storm.rate(200, since=min(WARM_UP, storm.seconds / 4), until=max(answer.at for answer in storm.answers))
    refused = storm.times(429)
    others = [answer for answer in storm.answers if answer.status not in (200, 429)]
    usual = quantile(calm.times(200), 0.95)
    return [
        Figure("overload: answers at the peak", peak, "/s"),
        Figure(f"overload: offered, {OVERLOAD:g} times the peak", len(storm.answers) / storm.seconds, "/s"),
        Figure("overload: goodput lost against the peak", 100 * (1 - goodput / peak), "%", 10.0),
        Figure("overload: refused with 429", 100 * len(refused) / len(storm.answers), "%"),
        Figure("overload: 429 after, p99", 1e3 * quantile(refused, 0.99), "ms", 50.0),
        Figure("overload: answers neither 200 nor 429", len(others), "", 0.0),
        Figure(f"overload: answered after, p95 (--max-wait {MAX_WAIT:g})", quantile(storm.times(200), 0.95), "s"),
        Figure("overload: all is well again after", recovery(after, usual), "s", 2.0),
        Figure("overload: generator", max(run.cores for run in (calm, storm, after)), "cores", GENERATOR),
    ]


def recovery(after: Run, usual: float) -> float:
    """When the last request came that was refused, or took twice as long as the slowest twentieth of calm days."""
    late = [answer.at for answer in after.answers if answer.status != 200 or answer.seconds > 2 * usual]
    return max(late, default=0.0)
