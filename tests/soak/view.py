"""What a soak sees of a running mesh: the nodes of a gateway, how long something takes, what a process holds."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import trio

from tests.fleet import Program, tail
from tests.network.namespaces import Host, Network

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import httpx2

Condition = Callable[[], Awaitable[bool]]
TOO_LONG = 90.0
"""Seconds after which something counts as never: the figure then misses its target, and the soak goes on."""
_TASKS = re.compile(r"mesh\.runtime: (\d+) tasks")


@contextmanager
def made_network(*, multicast: bool = True) -> Iterator[Network]:
    """A network for one part of a soak. When the part fails, its logs stay and their ends are printed."""
    logs = Path(tempfile.mkdtemp(prefix="infermesh-soak-"))
    network = Network(logs, multicast=multicast)
    try:
        yield network
    except BaseException:
        for program in (program for host in network.hosts for program in host.programs):
            print(f"--- {program.log}\n{tail(program.log, 8)}", file=sys.stderr)
        raise
    else:
        shutil.rmtree(logs, ignore_errors=True)
    finally:
        network.end()


class View:
    """One gateway, asked from its own machine over connections that stay open."""

    def __init__(self, program: Program, http: httpx2.AsyncClient) -> None:
        self.program = program
        self.http = http

    @classmethod
    @asynccontextmanager
    async def of(cls, host: Host, gateway: Program) -> AsyncIterator[View]:
        async with host.http(timeout=60) as http:
            yield cls(gateway, http)

    async def peers(self) -> list[dict[str, Any]]:
        """Those with a link."""
        answer = await self.http.get(f"{self.program.url}/v1/mesh/peers")
        return [peer for peer in answer.json()["peers"] if peer["linked"]]

    async def linked(self, role: str | None = "node") -> set[str]:
        """Peer ids of those with a link; None = of every role."""
        return {peer["peer_id"] for peer in await self.peers() if role in (None, peer["role"])}

    async def routable(self, model: str) -> bool:
        models = (await self.http.get(f"{self.program.url}/v1/models")).json()["data"]
        return any(entry["id"] == model for entry in models)

    async def candidates(self, model: str) -> set[str]:
        """Whom a request would go to."""
        answer = await self.http.get(f"{self.program.url}/v1/route", params={"model": model})
        return {one["peer_id"] for one in answer.json()["candidates"]} if answer.status_code == 200 else set()

    def has(self, peer_id: str) -> Condition:
        async def look() -> bool:
            return peer_id in await self.linked()

        return look

    def lacks(self, peer_id: str, model: str) -> Condition:
        """It is neither linked nor a candidate any more."""

        async def look() -> bool:
            return peer_id not in await self.linked() and peer_id not in await self.candidates(model)

        return look


async def seconds_until(*conditions: Condition, limit: float = TOO_LONG, every: float = 0.005) -> float:
    """How long it takes until every condition was true once; `limit` when it takes longer."""
    start = time.perf_counter()

    async def wait(condition: Condition) -> None:
        while not await condition():  # noqa: ASYNC110 - it is asked over HTTP
            await trio.sleep(every)

    with trio.move_on_after(limit) as scope:
        async with trio.open_nursery() as nursery:
            for condition in conditions:
                nursery.start_soon(wait, condition)
    return limit if scope.cancelled_caught else time.perf_counter() - start


@dataclass(frozen=True)
class Holding:
    """What a process holds. `tasks`: as its log said last, -1 when it says nothing; it must log `mesh.runtime=debug`."""

    tasks: int
    sockets: int
    threads: int
    memory: int

    @classmethod
    def of(cls, program: Program) -> Holding:
        process = psutil.Process(program.process.pid)
        told = _TASKS.findall(program.log.read_text(errors="replace"))
        return cls(int(told[-1]) if told else -1, process.num_fds(), process.num_threads(), process.memory_info().rss)
