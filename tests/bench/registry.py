"""`python -m tests.bench.registry`: one gateway that knows 10,000 nodes.

Real signed records over real links on the memory transport; a few hundred of the nodes answer when they are dialled. It runs in a
process of its own, because it measures that process's memory.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import statistics
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import trio

from gateway.models import KnownModels
from mesh.identity import Identity, PeerId
from mesh.messages.link import ModelLoad, Records
from mesh.messages.record import Capabilities, Hardware, ModelEntry, NodeRecord, SealedRecord
from mesh.peer import Peer, PeerSettings
from mesh.record import RECORD_TTL, read_unchecked, seal
from mesh.registry import Registry
from mesh.transport.memory import MemoryNetwork, MemoryTransport
from tests.fleet import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

RECORDS = 10_000
ANSWERING = 200
"""Nodes that can be dialled; all serve HOT."""
LIMIT = 64
"""Links per model, the default."""
LOOKUPS = 2_000
SETTLE = 10.0
"""Seconds."""
REFRESHED = 1_000
HOT = "org/hot-model-70b-instruct"
COLD = [f"org/model-{number}-8b-instruct" for number in range(40)]
ARGUMENT = "--raw"

Row = tuple[str, float, str, float | None]


def entry(model: str) -> ModelEntry:
    return ModelEntry(
        id=model,
        aliases=[model.partition("/")[2]],
        context_length=32_768,
        state="ready",
        weights_digest=f"sha256:{model.encode().hex():0<64.64}",
        numerics="fp32",
        backend="torch",
        created=1_780_000_000,
        capabilities=Capabilities(tasks=["chat", "completion"], hardware_types=["cuda"], protocols=["openai"]),
    )


def record(identity: Identity, number: int, sequence: int, *models: str) -> SealedRecord:
    host = f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"
    hosts = ("ip4/127.0.0.1", f"ip4/{host}", f"ip6/fd00::{number:x}")
    said = NodeRecord(
        peer_id=identity.peer_id,
        sequence=sequence,
        issued_at=int(time.time()),
        ttl=RECORD_TTL,
        role="node",
        name=f"machine-{number}",
        mesh="bench",
        version="0.1.0",
        addresses=[f"/{one}/tcp/{4001 + number}/p2p/{identity.peer_id}" for one in hosts],
        models=[entry(model) for model in models],
        hardware=Hardware("cuda", "NVIDIA H100 80GB HBM3", 1, 80 * 2**30, 64),
        ports={"service": 8100, "supervisor": 8101},
    )
    return seal(identity, said)


class Served:
    """Answers nothing; nobody asks."""

    async def infer(self, _request: Any, _emit: Any) -> None:
        raise AssertionError


def peer(network: MemoryNetwork, role: Any, *bootstrap: Peer, **options: Any) -> Peer:
    identity = Identity.generate()
    addresses = [one.addresses[0] for one in bootstrap]
    settings = PeerSettings(identity=identity, role=role, name=role, mesh="bench", bootstrap=addresses, **options)
    return Peer(settings, MemoryTransport(identity, network), Served())


@asynccontextmanager
async def town() -> AsyncIterator[tuple[Peer, Peer]]:
    """A bootstrap peer and a gateway that is linked with it."""
    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        bootstrap = peer(network, "bootstrap")
        await nursery.start(bootstrap.run)
        gateway = peer(network, "gateway", bootstrap, links_per_model=LIMIT)
        await nursery.start(gateway.run)
        await until(lambda: gateway.peer_id in bootstrap.links)
        for _ in range(ANSWERING):
            node = peer(network, "node", bootstrap)
            node.announce([entry(HOT)], {HOT: ModelLoad("ready", slots=4)})
            await nursery.start(node.run)
        yield bootstrap, gateway
        nursery.cancel_scope.cancel()


def microseconds(call: Callable[[], Any], times: int = LOOKUPS) -> float:
    """The median of some calls."""
    taken = []
    for _ in range(times):
        start = time.perf_counter_ns()
        call()
        taken.append((time.perf_counter_ns() - start) / 1e3)
    return statistics.median(taken)


def resident() -> int:
    gc.collect()
    return int(psutil.Process(os.getpid()).memory_info().rss)


def alone(wire: list[bytes]) -> list[Row]:
    """A registry without links: what a record takes."""
    decoder = msgspec.msgpack.Decoder(SealedRecord)
    registry = Registry(Identity.generate().peer_id, mesh="bench", clock=time.monotonic)
    before, began = resident(), time.process_time()
    for one in wire:
        registry.learn(decoder.decode(one))
    spent, after = time.process_time() - began, resident()
    assert len(registry.peers) == len(wire)
    return [
        (f"{RECORDS} records: memory per record", (after - before) / RECORDS / 1024, "KiB", 4.0),
        (f"{RECORDS} records: to learn one, CPU", spent / RECORDS * 1e6, "us", None),
        (f"{RECORDS} records: to expire what is due, p50", microseconds(registry.expire, 20), "us", None),
    ]


@dataclass
class Stall:
    """The longest that the event loop kept a task waiting, in seconds."""

    longest: float = 0.0

    async def run(self) -> None:
        while True:
            start = trio.current_time()
            await trio.sleep(0.001)
            self.longest = max(self.longest, trio.current_time() - start - 0.001)


async def tell(bootstrap: Peer, gateway: Peer, records: Sequence[SealedRecord]) -> None:
    """Send records as peer exchange does, in pieces, and wait until they are known."""
    link = bootstrap.links[gateway.peer_id]
    for start in range(0, len(records), 200):
        link.send(Records(list(records[start : start + 200])))
        await link.flush()
    last = PeerId(read_unchecked(records[-1]).peer_id)
    await until(lambda: last in gateway.registry.peers and gateway.registry.peers[last].sealed == records[-1], limit=300)


async def linked(identities: Sequence[Identity], records: Sequence[SealedRecord]) -> list[Row]:
    """A gateway that hears of all of them, and of some again."""
    stall = Stall()
    async with trio.open_nursery() as nursery, town() as (bootstrap, gateway):
        models = KnownModels(gateway.registry)
        await until(lambda: len(gateway.registry.nodes(HOT)) >= LIMIT)
        await tell(bootstrap, gateway, records)
        nursery.start_soon(stall.run)
        again = [record(one, number, 2, *models_of(number)) for number, one in enumerate(identities[:REFRESHED])]
        stall.longest, began, wall = 0.0, time.process_time(), time.perf_counter()
        await tell(bootstrap, gateway, again)
        heard = (time.process_time() - began) / REFRESHED * 1e6
        began, wall = time.process_time(), time.perf_counter()
        await trio.sleep(SETTLE)
        busy = (time.process_time() - began) / (time.perf_counter() - wall)
        registry = gateway.registry
        rows: list[Row] = [
            ("candidates of a model, p50", microseconds(lambda: registry.nodes(HOT)), "us", 50.0),
            ("what a model's name means, p50", microseconds(lambda: models.resolve(HOT)), "us", 50.0),
            ("list of models, p50", microseconds(registry.catalog, 200), "us", None),
            ("a record heard again, CPU at both ends", heard, "us", None),
            ("links of a gateway to nodes of one model", len(registry.nodes(HOT)), "links", float(LIMIT)),
            (f"CPU of the process beside {ANSWERING} nodes, idle", busy * 100, "%", None),
            ("longest stall of the event loop", stall.longest * 1e3, "ms", None),
        ]
        nursery.cancel_scope.cancel()
    return [(f"{RECORDS} records: {name}", value, unit, target) for name, value, unit, target in rows]


def models_of(number: int) -> tuple[str, str]:
    return HOT, COLD[number % len(COLD)]


def raw() -> list[Row]:
    """Measure in this process."""
    logging.disable(logging.WARNING)
    identities = [Identity.generate() for _ in range(RECORDS)]
    records = [record(one, number, 1, *models_of(number)) for number, one in enumerate(identities)]
    rows = alone([msgspec.msgpack.encode(one) for one in records])
    return rows + trio.run(linked, identities, records)


def rows() -> list[Row]:
    """Measure in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.registry", ARGUMENT], stdout=subprocess.PIPE, check=True, timeout=900
    )
    return [tuple(row) for row in json.loads(done.stdout)]


def main(argv: list[str]) -> int:
    if argv == [ARGUMENT]:
        print(json.dumps(raw()))
        return 0
    found = rows()
    for name, value, unit, target in found:
        print(f"{name:60} {value:10.4g} {unit:5}", "" if target is None else f"target <= {target:g}")
    return int(any(target is not None and value > target for _, value, _, target in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
