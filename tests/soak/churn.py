"""A dozen nodes, one killed, stopped or started every two seconds, with traffic: no ghosts stay in a view, and nothing grows.

Gateways and the bootstrap peer are measured at rest before and after. What a dead node left, a record and tries to reach it, may
stay as long as its record lives, so the rest after the churn is longer than that.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil
import trio
from rich.progress import Progress

from mesh.record import RECORD_TTL
from tests.figures import Figure
from tests.soak.traffic import Outcomes, stream_for_ever
from tests.soak.view import Holding, View, made_network, seconds_until

if TYPE_CHECKING:
    from tests.fleet import Program
    from tests.network.namespaces import Host, Network

SECONDS = 300.0
NODES = 12
EVERY = 2.0
CLIENTS = 4
"""Of each gateway."""
DEATHS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)
GHOST_LIMIT = 5.0
WARM_UP = 0.25
"""Share of the time after which memory should not grow any more."""
SLACK = 6
"""Tasks and sockets that may be more at the end: a link that is just being opened has some."""


@dataclass
class Churn:
    """The nodes, alive and dead. Times are of time.perf_counter."""

    host: Host
    way_in: tuple[str, ...]
    alive: list[Program] = field(default_factory=list)
    died: dict[str, float] = field(default_factory=dict)
    oldest_ghost: float = 0.0
    events: int = 0

    async def start(self) -> None:
        self.alive.append(await self.host.mock("shared;tokens_per_second=100", *self.way_in))

    async def end(self, number: signal.Signals) -> None:
        """End a node; one that leaves in good order counts as gone once it is."""
        node = self.alive.pop(random.randrange(len(self.alive)))
        os.kill(node.process.pid, number)
        if number == signal.SIGSTOP:
            self.died[node.ready["peer_id"]] = time.perf_counter()
            await trio.sleep(GHOST_LIMIT)
            node.process.kill()
        await node.wait(40)
        self.died.setdefault(node.ready["peer_id"], time.perf_counter())

    async def run(self, seconds: float) -> None:
        """One event every `EVERY` seconds: below the full dozen as often a start as a death."""
        async with trio.open_nursery() as nursery:
            for _ in range(int(seconds / EVERY)):
                self.events += 1
                if len(self.alive) < NODES and (len(self.alive) < NODES - 4 or random.random() < 0.5):
                    nursery.start_soon(self.start)
                else:
                    nursery.start_soon(self.end, random.choice(DEATHS))
                await trio.sleep(EVERY)

    async def look_for_ghosts(self, view: View) -> None:
        while True:
            asked = time.perf_counter()
            for peer_id in await view.linked() & self.died.keys():
                self.oldest_ghost = max(self.oldest_ghost, asked - self.died[peer_id])
            await trio.sleep(0.1)

    async def refill(self) -> None:
        while len(self.alive) < NODES:
            await self.start()


async def measure(scale: float) -> list[Figure]:
    seconds = max(20.0, SECONDS * scale)
    with made_network(multicast=False) as network:
        machines, watched, way_in = await start_mesh(network)
        churn = Churn(machines, way_in)
        async with trio.open_nursery() as nursery:
            for _ in range(NODES):
                nursery.start_soon(churn.start)
        outcomes, memory = Outcomes(), Memory(watched)
        await traffic(watched, outcomes, 10.0)
        before = await at_rest(watched, churn)
        async with View.of(*watched[0]) as first, View.of(*watched[1]) as second, trio.open_nursery() as nursery:
            nursery.start_soon(memory.run)
            nursery.start_soon(show_progress, seconds)
            for view in (first, second):
                nursery.start_soon(churn.look_for_ghosts, view)
            nursery.start_soon(traffic, watched, outcomes, seconds)
            await churn.run(seconds)
            nursery.cancel_scope.cancel()
        await churn.refill()
        # Whoever died in a short run is still being tried: that is no leak.
        rest = (RECORD_TTL * 4 / 3 + 10) * min(1.0, scale)
        await trio.sleep(rest)
        after = await at_rest(watched, churn)
        remembered = 0 if scale >= 1 else len(churn.died)
    print(f"streams: {outcomes}; {churn.events} nodes ended or started")
    return [
        Figure(f"churn of {seconds:.0f} s: oldest ghost in a gateway's view", churn.oldest_ghost, "s", GHOST_LIMIT),
        Figure("churn: streams done", outcomes.counts["done"], ""),
        Figure("churn: streams that failed before their first token or without a word", refused(outcomes), "", 0),
        Figure("churn: streams that were interrupted, and said so", outcomes.counts["stream_interrupted"], ""),
        *grown(before, after, remembered),
        *memory.figures(),
    ]


async def start_mesh(network: Network) -> tuple[Host, list[tuple[Host, Program]], tuple[str, ...]]:
    """The machine of the nodes; both gateways and the bootstrap peer; how to join."""
    hosts = [network.host(name) for name in ("west", "east", "meeting")]
    counted = ("--no-mdns", "--log-level", "info,mesh.runtime=debug")
    bootstrap = await hosts[2].start("bootstrap", *counted)
    way_in = ("--no-mdns", "--bootstrap", hosts[2].address_of(bootstrap))
    watched = [(host, await host.gateway(*counted, *way_in[1:])) for host in hosts[:2]]
    return network.host("nodes"), [*watched, (hosts[2], bootstrap)], way_in


async def traffic(watched: list[tuple[Host, Program]], outcomes: Outcomes, seconds: float) -> None:
    """Streams through both gateways, on connections that end with it."""
    async with View.of(*watched[0]) as first, View.of(*watched[1]) as second:
        with trio.move_on_after(seconds):
            async with trio.open_nursery() as nursery:
                for view in (first, second):
                    for _ in range(CLIENTS):
                        nursery.start_soon(lambda view=view: stream_for_ever(view, "shared", outcomes, tokens=50))


async def at_rest(watched: list[tuple[Host, Program]], churn: Churn) -> list[Holding]:
    """What gateways and bootstrap hold while nobody asks anything and all nodes are linked."""
    wanted = {node.ready["peer_id"] for node in churn.alive}
    async with View.of(*watched[0]) as first, View.of(*watched[1]) as second:

        async def complete(view: View) -> bool:
            return await view.linked() == wanted

        taken = await seconds_until(lambda: complete(first), lambda: complete(second))
    print(f"all {len(wanted)} nodes linked to both gateways after {taken:.2f} s")
    await trio.sleep(8)
    return [Holding.of(program) for _, program in watched]


def refused(outcomes: Outcomes) -> int:
    return outcomes.failed - outcomes.counts["stream_interrupted"]


def grown(before: list[Holding], after: list[Holding], remembered: int) -> list[Figure]:
    """The most that one program holds more than before, of each kind."""
    more = {
        kind: max(getattr(now, kind) - getattr(then, kind) for then, now in zip(before, after, strict=True))
        for kind in ("tasks", "sockets", "threads")
    }
    assert all(holding.tasks > 0 for holding in before + after), "a program did not tell its tasks"
    return [Figure(f"churn: {kind} more at rest than before", more[kind], "", SLACK + 2 * remembered) for kind in more]


class Memory:
    """Resident memory of programs over time."""

    def __init__(self, watched: list[tuple[Host, Program]]) -> None:
        self._processes = {f"{program.role} {host.logs.name}": psutil.Process(program.process.pid) for host, program in watched}
        self._taken: dict[str, list[int]] = {name: [] for name in self._processes}

    async def run(self) -> None:
        while True:
            for name, process in self._processes.items():
                self._taken[name].append(process.memory_info().rss)
            await trio.sleep(1)

    def figures(self) -> list[Figure]:
        """Of each program, the last tenth of the time against the tenth after the warm-up."""
        figures = []
        for name, taken in self._taken.items():
            tenth = max(1, len(taken) // 10)
            start = int(len(taken) * WARM_UP)
            early, late = statistics.median(taken[start : start + tenth]), statistics.median(taken[-tenth:])
            figures.append(Figure(f"churn: memory of {name} at the end / after warm-up", late / early, "x", 1.1))
            figures.append(Figure(f"churn: memory of {name} at the end", late / 2**20, "MiB"))
        return figures


async def show_progress(seconds: float) -> None:
    with Progress(transient=True) as progress:
        bar = progress.add_task("churn", total=seconds)
        for _ in range(int(seconds)):
            await trio.sleep(1)
            progress.advance(bar)
