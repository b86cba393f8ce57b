"""Strategies on real mock nodes, the slowest SPREAD times slower than the fastest: how long 19 of 20 answers take under each.

Every strategy has a gateway of its own and the same arrivals; they run one after another on the same nodes, emptied in between.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import trio
from rich.progress import track

from tests.bench.load import Load, poisson
from tests.figures import Figure, quantile
from tests.fleet import until

if TYPE_CHECKING:
    import httpx2

    from tests.fleet import Fleet, Program

SPREAD = 10.0
NODES = 6
SLOTS = 2
TOKENS = 10
FASTEST = 0.1
"""Seconds that a request takes on the fastest node while it is alone."""
STRATEGIES = ("predicted_latency", "least_loaded", "round_robin")
LOADS = (0.40, 0.60, 0.75)
LEARNING = 0.2
"""The share of a run that is not counted: the gateway knows nothing at first."""


def slowness() -> list[float]:
    """How many times slower than the fastest each node is, evenly by factor."""
    return [SPREAD ** (number / (NODES - 1)) for number in range(NODES)]


def capacity() -> float:
    """Requests per second that all nodes can answer."""
    return sum(SLOTS / (FASTEST * factor) for factor in slowness())


async def routing(fleet: Fleet, http: httpx2.AsyncClient, *, seconds: float = 40.0) -> list[Figure]:
    bootstrap = await fleet.start("bootstrap")
    how = ("--no-mdns", "--bootstrap", bootstrap.address)
    nodes = [await fleet.mock(f"m;{knobs(factor)}", *how) for factor in slowness()]
    figures: list[Figure] = []
    for share in LOADS:
        slow = {name: await measured(fleet, http, name, how, share, seconds) for name in track(STRATEGIES, f"{share:.0%} load")}
        ours = slow["predicted_latency"]
        figures += [Figure(f"routing at {share:.0%} load: {name}, p95", slow[name], "s") for name in STRATEGIES]
        figures += [
            Figure(f"routing at {share:.0%} load: predicted_latency / round_robin, p95", ours / slow["round_robin"], "x", 1 / 5),
            Figure(
                f"routing at {share:.0%} load: predicted_latency / least_loaded, p95", ours / slow["least_loaded"], "x", 1 / 1.5
            ),
        ]
    for program in (*nodes, bootstrap):
        await program.stop()
    return figures


def knobs(factor: float) -> str:
    each = FASTEST * factor / (TOKENS + 1)
    return f"slots={SLOTS};first_token_ms={2000 * each:.3f};tokens_per_second={1 / each:.3f};length={TOKENS}"


async def measured(
    fleet: Fleet, http: httpx2.AsyncClient, strategy: str, how: tuple[str, ...], share: float, seconds: float
) -> float:
    """Seconds within which 19 of 20 requests were answered."""
    gateway = await fleet.gateway("--strategy", strategy, *how)
    await until(lambda: all_linked(http, gateway))
    load = Load(gateway.url, {"model": "m", "prompt": "hello"})
    run = await load.arrive(poisson(share * capacity(), seed=7), seconds)
    await load.close()
    await gateway.stop()
    await trio.sleep(1.0)
    failed = [answer.status for answer in run.answers if answer.status != 200]
    assert len(failed) <= 0.5 * len(run.answers), f"{strategy} answered less than half: {statistics.mode(failed)}"
    # Who was refused did not get its answer in any time: it counts as the slowest.
    times = [answer.seconds if answer.status == 200 else seconds for answer in run.answers if answer.at >= LEARNING * seconds]
    return quantile(times, 0.95)


async def all_linked(http: httpx2.AsyncClient, gateway: Program) -> bool:
    peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
    return sum(bool(peer["models"]) and peer["linked"] for peer in peers) == NODES
