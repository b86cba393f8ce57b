"""`make bench`: measure on real processes, assert the targets, write tables in docs/benchmarks.md and docs/bench-PART.json.

`python -m tests.bench link` measures only the parts that it names. `overload`, `disconnect`, `routing` and `affinity` have a
short form, for trying out, which writes nothing: `python -m tests.bench --short overload`.
`python -m tests.bench engine-peers` compares the engine with others, which takes many minutes: see `tests.bench.engine`.

Everything is on loopback, bounded in count, and each ratio compares two things measured in this run.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx2
import trio
from rich.progress import track

from tests.bench import registry
from tests.bench.affinity import SHORT as SHORT_AFFINITY
from tests.bench.affinity import affinity
from tests.bench.disconnect import disconnect
from tests.bench.link import link
from tests.bench.overload import overload
from tests.bench.resume import resume
from tests.bench.routing import routing
from tests.bench.switches import switches
from tests.figures import Figure, quantile, report, write
from tests.fleet import Fleet, Program, until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

JOINS = 10
REQUESTS = 300
STREAMS = 32
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


async def arrivals(fleet: Fleet, http: httpx2.AsyncClient) -> list[Figure]:
    """How soon a node that is ready is routable, by either way of finding it."""
    figures = []
    for mdns in (True, False):
        taken = await joins(fleet, http, mdns=mdns)
        how = "mDNS" if mdns else "bootstrap address"
        figures.append(Figure(f"node ready to routable by {how}, p50 of {JOINS}", statistics.median(taken), "s"))
        figures.append(Figure(f"node ready to routable by {how}, p95 of {JOINS}", quantile(taken, 0.95), "s", 5.0))
    return figures


async def records() -> list[Figure]:
    return [Figure(*row) for row in registry.rows()]


PARTS: dict[str, Callable[[Fleet, httpx2.AsyncClient], Awaitable[list[Figure]]]] = {
    "joins": arrivals,
    "registry": lambda _fleet, _http: records(),
    "link": lambda _fleet, _http: link(),
    "resume": lambda _fleet, _http: resume(),
    "gateway": through_gateway,
    "engine": demo_engine,
    "overload": overload,
    "disconnect": disconnect,
    "routing": routing,
    "affinity": affinity,
    "switches": switches,
    "endings": lambda fleet, _http: endings(fleet),
}


SHORT: dict[str, Callable[[Fleet, httpx2.AsyncClient], Awaitable[list[Figure]]]] = {
    "overload": partial(overload, seconds=10.0),
    "disconnect": partial(disconnect, rounds=40),
    "routing": partial(routing, seconds=10.0),
    "affinity": partial(affinity, plan=SHORT_AFFINITY),
}


async def measure(part: str, *, short: bool = False) -> list[Figure]:
    with tempfile.TemporaryDirectory(prefix="infermesh-bench-") as folder:
        fleet = Fleet(Path(folder))
        try:
            async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
                chosen = {**PARTS, **SHORT} if short else PARTS
                return await chosen[part](fleet, http)
        finally:
            fleet.end()


def main(words: Sequence[str]) -> int:
    if words and words[0] == "engine-peers":
        from tests.bench import engine  # needs torch, which nothing else here does

        return engine.main(words[1:])
    asked = [word for word in words if word != "--short"]
    unknown = [part for part in asked if part not in PARTS]
    if unknown:
        print(f"no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
        return 2
    return max(run(part, short="--short" in words) for part in asked or PARTS)


def run(part: str, *, short: bool) -> int:
    """One part; its figures replace those of its last run, unless it was a short one. The exit code."""
    figures = trio.run(partial(measure, part, short=short))
    if not short:
        write(figures, mark=f"bench {part}", file=f"bench-{part}.json")
    return report(figures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
