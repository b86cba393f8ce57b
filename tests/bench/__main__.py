"""`make bench`: measure on real processes, assert the targets, write docs/benchmarks.json and the table in docs/benchmarks.md.

Everything is on loopback, bounded in count, and each ratio compares two things measured in this run.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import trio
from rich.progress import track

from mesh.identity import Identity
from mesh.messages.inference import Done, InferenceRequest, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry
from mesh.peer import Peer, PeerSettings
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport
from tests.bench import registry
from tests.figures import Figure, quantile, report, write
from tests.fleet import Fleet, Program, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.link import Link
    from mesh.messages.record import Role
    from mesh.service import Emit

JOINS = 10
REQUESTS = 300
STREAMS = 32
ROUND_TRIPS = 2_000
LOCAL = ["/ip4/127.0.0.1/tcp/0"]
DEMO = "infermesh-demo"


async def models(http: httpx2.AsyncClient, url: str) -> list[str]:
    return [entry["id"] for entry in (await http.get(f"{url}/v1/models")).json()["data"]]


def body(model: str, **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": "Who are you?"}], "temperature": 0, **options}


async def joins(fleet: Fleet, http: httpx2.AsyncClient, *, mdns: bool) -> list[float]:
    """Seconds from a node's ready line until the gateway has the node's model, over JOINS fresh nodes."""
    gateway = await fleet.gateway("--mdns" if mdns else "--no-mdns")
    how = ["--mdns"] if mdns else ["--no-mdns", "--bootstrap", gateway.address]
    taken: list[float] = []
    for number in track(range(JOINS), f"joins by {'mDNS' if mdns else 'bootstrap address'}"):
        node = await fleet.mock(f"joined-{number}", *how)
        start = time.perf_counter()

        async def routable(model: str = f"joined-{number}") -> bool:
            return model in await models(http, gateway.url)

        await until(routable, every=0.005)
        taken.append(time.perf_counter() - start)
        await node.stop()
    await gateway.stop()
    return taken


async def sequential(http: httpx2.AsyncClient, url: str, request: dict[str, Any]) -> list[float]:
    """Milliseconds per request, one after another."""
    times = []
    for _ in range(REQUESTS):
        start = time.perf_counter()
        (await http.post(f"{url}/v1/chat/completions", json=request)).raise_for_status()
        times.append((time.perf_counter() - start) * 1e3)
    return times


async def first_token(http: httpx2.AsyncClient, url: str, request: dict[str, Any]) -> list[float]:
    """Milliseconds until the first content of a stream, one stream after another."""
    times = []
    for _ in range(REQUESTS // 3):
        start = time.perf_counter()
        async with http.stream("POST", f"{url}/v1/chat/completions", json={**request, "stream": True}) as answer:
            async for line in answer.aiter_lines():
                if '"content":"' in line and '"content":""' not in line:
                    times.append((time.perf_counter() - start) * 1e3)
                    break
    return times


async def token_rate(http: httpx2.AsyncClient, url: str, request: dict[str, Any]) -> float:
    """Tokens per second over STREAMS streams at once."""
    tokens = 0

    async def one() -> None:
        nonlocal tokens
        async with http.stream("POST", f"{url}/v1/chat/completions", json={**request, "stream": True}) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {") and '"usage":{' in line:
                    tokens += json.loads(line[6:])["usage"]["completion_tokens"]

    start = time.perf_counter()
    async with trio.open_nursery() as nursery:
        for _ in range(STREAMS):
            nursery.start_soon(one)
    return tokens / (time.perf_counter() - start)


async def through_gateway(fleet: Fleet, http: httpx2.AsyncClient) -> list[Figure]:
    """What the gateway and the link add to a request, against the node's own port."""
    gateway = await fleet.gateway("--no-mdns")
    node = await fleet.mock("m;tokens_per_second=1000000", "--no-mdns", "--bootstrap", gateway.address)
    direct = str((await http.get(f"{node.url}/info")).json()["url"])

    async def served() -> bool:
        return "m" in await models(http, gateway.url)

    await until(served)
    short, long = body("m", max_tokens=1), body("m", max_tokens=200, stream_options={"include_usage": True})
    figures = []
    for name, measure, request in (("one request", sequential, short), ("first token of a stream", first_token, short)):
        plain, routed = await measure(http, direct, request), await measure(http, gateway.url, request)
        added = statistics.median(routed) - statistics.median(plain)
        figures += [
            Figure(f"{name}: node's own port, p50", statistics.median(plain), "ms"),
            Figure(f"{name}: through the gateway, p50", statistics.median(routed), "ms"),
            Figure(f"{name}: added by gateway and link, p50", added, "ms"),
        ]
    plain_rate, routed_rate = await token_rate(http, direct, long), await token_rate(http, gateway.url, long)
    figures += [
        Figure(f"{STREAMS} streams: node's own port", plain_rate, "tokens/s"),
        Figure(f"{STREAMS} streams: through the gateway", routed_rate, "tokens/s"),
        Figure(f"{STREAMS} streams: through the gateway / direct", routed_rate / plain_rate, "x"),
    ]
    for program in (node, gateway):
        await program.stop()
    return figures


async def demo_engine(fleet: Fleet, http: httpx2.AsyncClient) -> list[Figure]:
    """The demo model through a gateway, and how long a killed worker is away."""
    gateway = await fleet.gateway("--no-mdns")
    node = await fleet.node("--no-mdns", "--bootstrap", gateway.address)

    async def served() -> bool:
        return DEMO in await models(http, gateway.url)

    await until(served)
    request = body(DEMO, max_tokens=100, temperature=1.5, stream_options={"include_usage": True})
    alone = await first_token(http, gateway.url, body(DEMO, max_tokens=1))
    rate = await token_rate(http, gateway.url, request)
    node.worker().kill()
    start = time.perf_counter()

    async def down() -> bool:
        return (await http.get(f"{node.url}/health")).status_code == 503

    async def up() -> bool:
        return not await down()

    await until(down, every=0.001)
    noticed = time.perf_counter() - start
    await until(up, every=0.01)
    back = time.perf_counter() - start
    for program in (node, gateway):
        await program.stop()
    return [
        Figure("demo model on this CPU: first token of a stream, p50", statistics.median(alone), "ms"),
        Figure(f"demo model on this CPU: {STREAMS} streams at once", rate, "tokens/s"),
        Figure("worker killed: /health is 503 after", noticed, "s"),
        Figure("worker killed: /health is 200 again after", back, "s"),
    ]


class Instant:
    """A service that is done at once."""

    async def infer(self, _request: InferenceRequest, emit: Emit) -> None:
        emit(Done("stop", Usage(1, 1), Performance(0, 0, 0, 0, 0)))


def peer_of(role: Role, *bootstrap: str, direct: bool) -> Peer:
    identity = Identity.generate()
    settings = PeerSettings(identity=identity, role=role, name=role, mesh="bench", bootstrap=list(bootstrap))
    carrier = DirectTransport(identity, LOCAL) if direct else None
    return Peer(settings, Libp2pTransport(identity, LOCAL), Instant(), direct=carrier)


async def round_trips(link: Link) -> tuple[float, float]:
    """Of one request at a time: the median round trip, and the CPU of both ends per frame, in microseconds."""
    request, taken = InferenceRequest(request_id="r", model="m"), []
    spent = time.process_time()
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        await link.infer(request, lambda _event: None)
        taken.append((time.perf_counter() - start) * 1e6)
    return statistics.median(taken), (time.process_time() - spent) * 1e6 / (2 * ROUND_TRIPS)


async def carried(*, direct: bool) -> tuple[float, float]:
    """`round_trips` between two peers of this process, on one carrier."""
    wanted = "direct" if direct else "libp2p"
    async with trio.open_nursery() as nursery:
        gateway = peer_of("gateway", direct=direct)
        await nursery.start(gateway.run)
        node = peer_of("node", gateway.addresses[0], direct=direct)
        node.announce([ModelEntry(id="m", state="ready")], {"m": ModelLoad("ready")})
        await nursery.start(node.run)

        def linked() -> Link | None:
            link = gateway.links.get(node.peer_id)
            return link if link is not None and link.carrier == wanted else None

        link: Link = await until(linked)
        # The link that a direct one replaced still ends.
        await trio.sleep(3)
        figures = await round_trips(link)
        nursery.cancel_scope.cancel()
    return figures


async def carriers() -> list[Figure]:
    """What a request on a link costs, on either carrier."""
    (slow, dear), (fast, cheap) = await carried(direct=False), await carried(direct=True)
    return [
        Figure("link on libp2p: round trip of a request, p50", slow, "us"),
        Figure("link on direct: round trip of a request, p50", fast, "us"),
        Figure("link on direct: round trip / that on libp2p", fast / slow, "x", 0.5),
        Figure("link on libp2p: CPU per frame, both ends", dear, "us"),
        Figure("link on direct: CPU per frame, both ends", cheap, "us"),
        Figure("link on direct: CPU per frame / that on libp2p", cheap / dear, "x", 0.5),
    ]


async def endings(fleet: Fleet) -> list[Figure]:
    """Seconds from SIGTERM to the end of an idle program."""
    starts: dict[str, Callable[[], Awaitable[Program]]] = {
        "bootstrap": lambda: fleet.start("bootstrap"), "gateway": fleet.gateway, "node with the demo model": fleet.node,
    }  # fmt: skip
    figures = []
    for name, begin in starts.items():
        program = await begin()
        start = time.perf_counter()
        code = await program.stop()
        figures.append(Figure(f"SIGTERM to exit, idle {name} (exit code {code})", time.perf_counter() - start, "s", 2.0))
    return figures


async def measure() -> list[Figure]:
    """Everything, one after another: the machine has two cores."""
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as folder:
        fleet = Fleet(Path(folder))
        try:
            async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
                figures = []
                for mdns in (True, False):
                    taken = await joins(fleet, http, mdns=mdns)
                    how = "mDNS" if mdns else "bootstrap address"
                    figures.append(Figure(f"node ready to routable by {how}, p50 of {JOINS}", statistics.median(taken), "s"))
                    figures.append(Figure(f"node ready to routable by {how}, p95 of {JOINS}", quantile(taken, 0.95), "s", 5.0))
                figures += await carriers()
                figures += [Figure(*row) for row in registry.rows()]
                figures += await through_gateway(fleet, http)
                figures += await demo_engine(fleet, http)
                return figures + await endings(fleet)
        finally:
            fleet.end()


def main() -> int:
    figures = trio.run(measure)
    write(figures)
    return report(figures)


if __name__ == "__main__":
    sys.exit(main())
