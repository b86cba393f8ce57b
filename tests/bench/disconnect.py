"""A client that goes away: how soon its slot on the node serves somebody else, through gateway and link.

The node has one slot. One client streams, a second one waits at the node; the first closes its connection, and the clock runs
until the second has its first token: everything that is on the way is in the figure.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import trio

from tests.bench.load import Load
from tests.figures import Figure, quantile
from tests.fleet import until

if TYPE_CHECKING:
    import httpx2

    from tests.fleet import Fleet

KNOBS = "slots=1;tokens_per_second=20;length=2000"
ROUNDS = 200
QUEUED = 0.03
"""Seconds that the second request gets to arrive at the node."""


async def disconnect(fleet: Fleet, http: httpx2.AsyncClient, *, rounds: int = ROUNDS) -> list[Figure]:
    gateway = await fleet.gateway("--no-mdns")
    node = await fleet.mock(f"m;{KNOBS}", "--no-mdns", "--bootstrap", gateway.address)

    async def served() -> bool:
        return "m" in [entry["id"] for entry in (await http.get(f"{gateway.url}/v1/models")).json()["data"]]

    await until(served)
    load = Load(gateway.url, {"model": "m", "prompt": "hello", "max_tokens": 2000, "stream": True})
    taken = [await one_round(load) for _ in range(rounds)]
    for program in (node, gateway):
        await program.stop()
    return [
        Figure(f"disconnect: slot free again, p50 of {rounds}", quantile(taken, 0.5), "ms"),
        Figure(f"disconnect: slot free again, p99 of {rounds}", quantile(taken, 0.99), "ms", 50.0),
    ]


async def one_round(load: Load) -> float:
    """Milliseconds from the close of one connection to the first token on another."""
    first, second = await load.connect(), await load.connect()
    await first.send_all(load.request)
    await first_token(first)
    await second.send_all(load.request)
    await trio.sleep(QUEUED)
    start = time.perf_counter()
    await first.aclose()
    await first_token(second)
    taken = (time.perf_counter() - start) * 1e3
    await second.aclose()
    return taken


async def first_token(stream: trio.SocketStream) -> None:
    received = b""
    with trio.fail_after(30):
        while b'"text":"' not in received:
            data = await stream.receive_some(4096)
            assert data, f"the gateway closed the connection: {received!r}"
            received += data
