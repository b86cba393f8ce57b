"""How long a fresh node takes from its ready line until a gateway on another machine can route to it."""

from __future__ import annotations

import statistics

from rich.progress import track

from tests.figures import Figure, quantile
from tests.soak.view import View, made_network, seconds_until

JOINS = 20
TARGET = 3.0


async def measure(scale: float) -> list[Figure]:
    """By mDNS alone; then by a bootstrap address, in a network that drops multicast."""
    return [*await joins(scale, mdns=True), *await joins(scale, mdns=False)]


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
