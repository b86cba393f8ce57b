"""A worker that is killed again and again, seconds after it was ready: how soon it is noticed, replaced, and serves again."""

from __future__ import annotations

import random
import shutil
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import psutil
import trio
from rich.progress import track

from tests.figures import Figure, quantile
from tests.fleet import Fleet, until
from tests.soak.view import View, seconds_until

if TYPE_CHECKING:
    from tests.fleet import Program
    from tests.soak.view import Condition

KILLS = 50
MODEL = "infermesh-demo"
STABLE = (6.0, 10.0)
"""Seconds that a worker was ready before it is killed: more than those after which its past is forgotten."""
SERVED_LIMIT = 120.0


@dataclass
class Taken:
    """Seconds since the death, for each kill."""

    down: list[float] = field(default_factory=list)
    begun: list[float] = field(default_factory=list)
    served: list[float] = field(default_factory=list)


async def measure(scale: float) -> list[Figure]:
    kills = max(3, round(KILLS * scale))
    logs = Path(tempfile.mkdtemp(prefix="infermesh-soak-"))
    fleet = Fleet(logs)
    try:
        meeting = await fleet.start("bootstrap", "--no-mdns")
        way_in = ("--no-mdns", "--bootstrap", meeting.address)
        node, gateway = await fleet.node(*way_in), await fleet.gateway(*way_in)
        async with httpx2.AsyncClient(timeout=60, trust_env=False) as http:
            taken = await killed_again_and_again(node, View(gateway, http), kills)
            left = await left_by(node)
    finally:
        fleet.end()
    shutil.rmtree(logs, ignore_errors=True)
    of = f"{kills} kills, {STABLE[0]:g} to {STABLE[1]:g} s after it was ready"
    unserved = sum(seconds >= SERVED_LIMIT for seconds in taken.served)
    return [
        Figure(f"worker killed: not served again, of {of}", unserved, "", 0),
        Figure("worker killed: announced as down at the gateway, p95", quantile(taken.down, 0.95), "s", 0.3),
        Figure("worker killed: restart begun, p95", quantile(taken.begun, 0.95), "s", 0.5),
        Figure("worker killed: a request is answered again, p50", statistics.median(taken.served), "s"),
        Figure("node killed: processes of it that are alive after 2 s", left, "", 0),
    ]


async def killed_again_and_again(node: Program, view: View, kills: int) -> Taken:
    taken = Taken()
    await seconds_until(answered(view), limit=SERVED_LIMIT, every=0.05)
    for _ in track(range(kills), "workers killed"):
        await trio.sleep(random.uniform(*STABLE))
        worker = node.worker()
        worker.kill()
        begin = time.perf_counter()

        async def note(condition: Condition, found: list[float], begin: float = begin) -> None:
            # Not more often: on a small machine the asking would delay what it measures.
            await seconds_until(condition, limit=SERVED_LIMIT, every=0.02)
            found.append(time.perf_counter() - begin)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, announced_down(view), taken.down)
            nursery.start_soon(note, restarted(node, view, worker.pid), taken.begun)
        await note(answered(view), taken.served)
    return taken


def announced_down(view: View) -> Condition:
    async def look() -> bool:
        states = [model["state"] for peer in await view.peers() for model in peer["models"] if model["id"] == MODEL]
        return "ready" not in states

    return look


def restarted(node: Program, view: View, old: int) -> Condition:
    async def look() -> bool:
        pid = (await view.http.get(f"{node.url}/info")).json()["pid"]
        return pid not in (None, old)

    return look


def answered(view: View) -> Condition:
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Who are you?"}], "max_tokens": 4}

    async def look() -> bool:
        return (await view.http.post(f"{view.program.url}/v1/chat/completions", json=body)).status_code == 200

    return look


async def left_by(node: Program) -> int:
    """How many of a node's processes are alive two seconds after it was killed."""
    await until(lambda: node.worker())
    family = node.children()
    node.kill()
    await trio.sleep(2)
    return sum(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in family)
