"""How long a gateway goes on with a node that is not there any more, and how long a network that was cut takes to be whole."""

from __future__ import annotations

import os
import random
import signal
import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

import trio
from rich.progress import track

from tests.figures import Figure, quantile
from tests.soak.view import View, made_network, seconds_until

if TYPE_CHECKING:
    from tests.fleet import Program
    from tests.network.namespaces import Host, Network

DEATHS = 10
PARTITIONS = 3
CUT = 30.0
"""Seconds."""

Way = Callable[["Host", "Program"], None]

WAYS: dict[str, tuple[Way, float]] = {
    "kill -9": (lambda _host, node: os.kill(node.process.pid, signal.SIGKILL), 1.0),
    "SIGTERM": (lambda _host, node: os.kill(node.process.pid, signal.SIGTERM), 1.0),
    "SIGSTOP": (lambda _host, node: os.kill(node.process.pid, signal.SIGSTOP), 4.0),
    "black hole": (lambda host, _node: host.cut(), 4.0),
}
"""What happens to a node, and within how many seconds it must be out of every gateway's candidates."""


async def measure(scale: float) -> list[Figure]:
    return [*await deaths(scale), *await partitions(scale)]


async def deaths(scale: float) -> list[Figure]:
    with made_network(multicast=False) as network:
        gateways, way_in = await two_gateways(network)
        victims = network.host("victims")
        async with View.of(*gateways[0]) as first, View.of(*gateways[1]) as second:
            figures = []
            for name, (way, target) in WAYS.items():
                taken = []
                for _ in track(range(max(2, round(DEATHS * scale))), f"deaths by {name}"):
                    taken.append(await death(victims, way, (first, second), way_in))
                of = f"{len(taken)}, two gateways"
                figures.append(Figure(f"{name}: out of every gateway's candidates, p50 of {of}", statistics.median(taken), "s"))
                figures.append(Figure(f"{name}: the same, p95", quantile(taken, 0.95), "s", target))
            return figures


async def two_gateways(network: Network) -> tuple[list[tuple[Host, Program]], tuple[str, ...]]:
    """Each on a machine of its own, with a bootstrap peer on a third; and how others join."""
    meeting = network.host()
    way_in = ("--no-mdns", "--bootstrap", meeting.address_of(await meeting.start("bootstrap", "--no-mdns")))
    hosts = network.host("west"), network.host("east")
    return [(host, await host.gateway(*way_in)) for host in hosts], way_in


async def death(host: Host, way: Way, views: tuple[View, ...], way_in: tuple[str, ...]) -> float:
    """Seconds until the last gateway has noticed the death of a fresh node."""
    node = await host.mock("m", *way_in)
    peer_id = node.ready["peer_id"]
    await seconds_until(*(view.has(peer_id) for view in views))
    # Links move to direct connections meanwhile, and heartbeats are at any point of their second.
    await trio.sleep(1.5 + random.random())
    way(host, node)
    taken = await seconds_until(*(view.lacks(peer_id, "m") for view in views))
    node.kill()
    host.mend()
    return taken


async def partitions(scale: float) -> list[Figure]:
    """Two halves of a mesh, apart for a while and together again."""
    cut = max(5.0, CUT * scale)
    noticed, whole = [], []
    with made_network(multicast=False) as network:
        gateways, way_in = await two_gateways(network)
        (west, _), (east, _) = gateways
        nodes = [(await host.mock("m", *way_in)).ready["peer_id"] for host in (west, west, east, east)]
        async with View.of(*gateways[0]) as first, View.of(*gateways[1]) as second:

            def all_of(view: View, wanted: set[str]) -> Callable[[], object]:
                async def look() -> bool:
                    return await view.linked() == wanted

                return look

            together = all_of(first, set(nodes)), all_of(second, set(nodes))
            await seconds_until(*together)
            for _ in track(range(max(1, round(PARTITIONS * scale))), f"partitions of {cut:.0f} s"):
                await trio.sleep(6 + random.random())
                network.split([host for host in network.hosts if host is not east], [east])
                noticed.append(await seconds_until(all_of(first, set(nodes[:2])), all_of(second, set(nodes[2:]))))
                await trio.sleep(max(0.0, cut - noticed[-1]) + random.random())
                network.heal()
                whole.append(await seconds_until(*together))
        restarted = sum(program.process.poll() is not None for host in network.hosts for program in host.programs)
    return [
        Figure(f"partition: both sides noticed, worst of {len(noticed)}", max(noticed), "s", 4.0),
        Figure(f"partition of {cut:.0f} s healed: both sides whole again, worst of {len(whole)}", max(whole), "s", 10.0),
        Figure("partition: programs that ended", restarted, "", 0),
    ]
