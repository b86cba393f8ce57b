"""How long it takes until a fresh node can be routed to from another machine; and until one says why it cannot join."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from rich.progress import track

from tests.figures import Figure, quantile
from tests.soak.view import View, made_network, seconds_until

if TYPE_CHECKING:
    from tests.network.namespaces import Host

JOINS = 20
TARGET = 3.0


async def measure(scale: float) -> list[Figure]:
    """By mDNS alone; by a bootstrap address, in a network that drops multicast; by addresses that are wrong."""
    return [*await joins(scale, mdns=True), *await joins(scale, mdns=False), *await wrong_addresses()]


async def joins(scale: float, *, mdns: bool) -> list[Figure]:
    how = "mDNS" if mdns else "bootstrap address, no multicast"
    taken: list[float] = []
    with made_network(multicast=mdns) as network:
        one, two, three = network.host(), network.host(), network.host()
        way_in: tuple[str, ...] = ()
        if not mdns:
            way_in = ("--bootstrap", three.address_of(await three.start("bootstrap")))
        gateway = await one.gateway(*way_in)
        async with View.of(one, gateway) as view:
            for number in track(range(max(2, round(JOINS * scale))), f"joins by {how}"):
                model = f"joined-{number}"
                node = await two.mock(model, *way_in)
                taken.append(await seconds_until(lambda model=model: view.routable(model)))
                await node.stop()
    count = len(taken)
    return [
        Figure(f"two machines, {how}: ready to routable, p50 of {count}", statistics.median(taken), "s"),
        Figure(f"two machines, {how}: ready to routable, p95 of {count}", quantile(taken, 0.95), "s", TARGET),
    ]


async def wrong_addresses() -> list[Figure]:
    """Each kind of wrong address, and what must be on screen."""
    with made_network(multicast=False) as network:
        one, two, gone = network.host(), network.host(), network.host()
        bootstrap = await one.start("bootstrap")
        silent = gone.address_of(await gone.start("bootstrap"))
        gone.cut()
        right, peer_id = one.address_of(bootstrap), bootstrap.ready["peer_id"]
        other = silent.rpartition("/")[2]
        reasons = {
            "port": (f"/ip4/{one.ipv4}/tcp/9/p2p/{peer_id}", "connection refused"),
            "machine": (f"/ip4/10.77.0.99/tcp/4001/p2p/{peer_id}", "no route to host"),
            "network": (f"/ip4/192.168.250.1/tcp/4001/p2p/{peer_id}", "network is unreachable"),
            "silent machine": (silent, "no "),
            "peer id": (right.replace(peer_id, other), "another peer answers"),
        }
        return [await explained(two, kind, *reason) for kind, reason in reasons.items()]


async def explained(host: Host, kind: str, address: str, reason: str) -> Figure:
    start = time.perf_counter()
    program = host.spawn("gateway", "--port", "0", "--no-mdns", "--bootstrap", address)

    async def told() -> bool:
        return any("warning" in line and address in line and reason in line for line in program.log.read_text().splitlines())

    await seconds_until(told, every=0.05)
    taken = time.perf_counter() - start
    program.kill()
    return Figure(f"wrong bootstrap address ({kind}): start to the reason in the log", taken, "s", 10.0)
