"""Far nodes that compute with all they have: streams run, and nobody is taken for dead.

The round trip is 80 ms, one packet in a hundred is lost, every core is busy.

Both torch nodes are on this one machine, so their workers take all cores, and everything else has to get along with what is left.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import trio
from rich.progress import Progress

from tests.figures import Figure, quantile
from tests.soak.traffic import Outcomes, stream_for_ever
from tests.soak.view import View, made_network, seconds_until

if TYPE_CHECKING:
    from tests.fleet import Program
    from tests.network.namespaces import Network

SECONDS = 600.0
DELAY = 0.040
"""Seconds in each direction."""
LOSS = 0.01
"""In each direction: harder than one in a hundred in all."""
DEMO = "infermesh-demo"
BUSY_STREAMS = 6
"""Per torch node: enough for its engine to have no idle moment."""
QUIET_STREAMS = 8
_ENDED = re.compile(r"the link to (\S+) ended: (.*)")


@dataclass
class Samples:
    """Taken while it runs. `busy`: percent of all cores; `round_trips`: milliseconds, as heartbeats measured them."""

    busy: list[float] = field(default_factory=list)
    round_trips: list[float] = field(default_factory=list)


async def measure(scale: float) -> list[Figure]:
    seconds = max(20.0, SECONDS * scale)
    computing, quiet, samples = Outcomes(), Outcomes(), Samples()
    with made_network(multicast=False) as network:
        near = network.host("near")
        gateway = await near.gateway("--no-mdns", "--strategy", "least_loaded")
        nodes = await far_nodes(network, ("--no-mdns", "--bootstrap", near.address_of(gateway)))
        async with View.of(near, gateway) as view:
            await seconds_until(*(view.has(node.ready["peer_id"]) for node in nodes))
            await trio.sleep(3)
            before = losses(gateway)
            with trio.move_on_after(seconds):
                async with trio.open_nursery() as nursery:
                    for _ in range(2 * BUSY_STREAMS):
                        nursery.start_soon(lambda: stream_for_ever(view, DEMO, computing, tokens=400, temperature=1.5))
                    for _ in range(QUIET_STREAMS):
                        nursery.start_soon(lambda: stream_for_ever(view, "quiet", quiet, tokens=100))
                    nursery.start_soon(take_samples, view, samples)
                    nursery.start_soon(show_progress, seconds)
            dead = losses(gateway)[len(before) :]
    print(f"torch streams: {computing}; mock streams: {quiet}")
    print(*dead, sep="\n")
    return [
        Figure(f"far nodes, {seconds:.0f} s: links lost", len(dead), "", 0),
        Figure("far nodes: streams that failed, torch", computing.failed, "", 0),
        Figure("far nodes: streams that failed, mock", quiet.failed, "", 0),
        Figure("far nodes: streams done, torch and mock", computing.counts["done"] + quiet.counts["done"], ""),
        Figure("far nodes: tokens, torch", computing.pieces / seconds, "/s"),
        Figure("far nodes: longest gap in a mock stream of 50 tokens/s", quiet.longest_gap, "s"),
        Figure("far nodes: cores busy, p50", quantile(samples.busy, 0.5), "%"),
        Figure("far nodes: round trip by heartbeat, p50", quantile(samples.round_trips, 0.5), "ms"),
        Figure("far nodes: round trip by heartbeat, worst", max(samples.round_trips), "ms", 1000.0),
    ]


async def far_nodes(network: Network, way_in: tuple[str, ...]) -> list[Program]:
    """Two with a torch worker each, one that only talks."""
    hosts = [network.far(delay=DELAY, loss=LOSS) for _ in range(3)]
    talker = await hosts[2].mock("quiet;tokens_per_second=50", *way_in)
    return [await hosts[0].node(*way_in), await hosts[1].node(*way_in), talker]


async def take_samples(view: View, samples: Samples) -> None:
    psutil.cpu_percent()
    while True:
        await trio.sleep(1)
        samples.busy.append(psutil.cpu_percent())
        samples.round_trips += [peer["rtt_ms"] for peer in await view.peers() if peer["rtt_ms"] is not None]


async def show_progress(seconds: float) -> None:
    with Progress(transient=True) as progress:
        bar = progress.add_task("far nodes", total=seconds)
        for _ in range(int(seconds)):
            await trio.sleep(1)
            progress.advance(bar)


def losses(gateway: Program) -> list[str]:
    """Ends of links that nobody wanted, as a log tells of them."""
    return [" ".join(found) for found in _ENDED.findall(gateway.log.read_text(errors="replace"))]
