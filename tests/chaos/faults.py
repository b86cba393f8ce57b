"""What is done to a mesh while it answers: one context manager for each kind, which does it on entry and undoes it on exit.

1. A fault is undone only after every request under way has ended: what the clients saw is the mesh's work alone.
2. Everything random comes from the source of the fault, which is seeded by kind and number.
"""

from __future__ import annotations

import os
import resource
import shutil
import signal
import struct
import subprocess
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2
import psutil
import trio

from tests.chaos.stage import DEMO, FLOOD, MOCK, Seat, Stage
from tests.chaos.traffic import Answer, ask

if TYPE_CHECKING:
    import random
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

HOUR = 3600
READER_PAUSE = 3.3
FLOOD_TOKENS = 30_000
"""Of `FLOOD_RATE` a second. In the pause come more than the kernel (up to 4 MiB) and the gateway (1 MiB) take of one client's
events, and less than makes the node give a reader up that it waits for (`mesh/link/credit.py`)."""
CLOCK_SOURCE = Path(__file__).parents[1] / "system" / "shifted_clock.c"


@dataclass
class Scene:
    """One fault on its way. `victim`: the node that the fault may be about; `more`: requests that the fault itself makes."""

    stage: Stage
    victim: Seat
    source: random.Random
    more: list[Answer]
    notes: list[str]
    """What the fault found wrong by itself."""


@dataclass(frozen=True)
class Kind:
    """`target`: seconds that the longest gap may last, p95. `local`: only the victim's clients are looked at for the gap."""

    fault: Callable[[Scene], AbstractAsyncContextManager[None]]
    target: float | None = None
    model: str = MOCK
    tokens: int = 200
    local: bool = False
    network: bool = False
    flood: bool = False
    clock: bool = False
    sockets: bool = False
    """Half of the clients use WebSockets, the others SSE; all pick their streams up at a second gateway."""


@asynccontextmanager
async def worker_kill(scene: Scene) -> AsyncIterator[None]:
    """SIGKILL to the process that computes; its node lives and starts another one."""
    scene.victim.program.worker().kill()
    yield


@asynccontextmanager
async def worker_stop(scene: Scene) -> AsyncIterator[None]:
    """The process that computes does nothing any more; its node goes on sending heartbeats."""
    worker = scene.victim.program.worker()
    worker.suspend()
    try:
        yield
    finally:
        # Its node may have replaced it.
        with suppress(psutil.NoSuchProcess):
            worker.resume()


@asynccontextmanager
async def node_kill(scene: Scene) -> AsyncIterator[None]:
    scene.victim.kill()
    yield
    await scene.victim.restart()


@asynccontextmanager
async def node_stop(scene: Scene) -> AsyncIterator[None]:
    os.kill(scene.victim.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(scene.victim.pid, signal.SIGCONT)


@asynccontextmanager
async def bootstrap_kill(scene: Scene) -> AsyncIterator[None]:
    scene.stage.bootstrap.kill()
    yield
    await scene.stage.bootstrap.restart()


@asynccontextmanager
async def gateway_kill(scene: Scene) -> AsyncIterator[None]:
    """The gateway of all clients dies; there is another one."""
    scene.stage.gateways[0].kill()
    yield
    await scene.stage.gateways[0].restart()


@asynccontextmanager
async def black_hole(scene: Scene) -> AsyncIterator[None]:
    """Nothing that the node's machine sends or is sent arrives, and nobody says so."""
    scene.victim.fleet.cut()  # type: ignore[attr-defined]  # in a network every node's fleet is a host
    try:
        yield
    finally:
        scene.victim.fleet.mend()  # type: ignore[attr-defined]


@asynccontextmanager
async def latency(scene: Scene) -> AsyncIterator[None]:
    """The way to the node takes up to 0.4 s longer in each direction from now on."""
    line = scene.victim.fleet.line  # type: ignore[attr-defined]
    line.change(delay=scene.source.uniform(0.05, 0.4))
    try:
        yield
    finally:
        line.change(delay=0.0)


@asynccontextmanager
async def slow_reader(scene: Scene) -> AsyncIterator[None]:
    """Clients ask for much and do not read it for a while."""
    bodies = [
        {
            "model": FLOOD,
            "messages": [{"role": "user", "content": "Tell me everything."}],
            "max_tokens": FLOOD_TOKENS,
            "min_tokens": FLOOD_TOKENS,
            "temperature": 0.8,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        for _ in range(2)
    ]
    scene.more += [Answer(body) for body in bodies]
    async with trio.open_nursery() as nursery:
        for answer in scene.more:
            nursery.start_soon(partial(ask, scene.stage.patient, scene.stage.url, answer, pause=READER_PAUSE))
        for answer in scene.more:
            await answer.begun.wait()
        yield


@asynccontextmanager
async def disk_full(scene: Scene) -> AsyncIterator[None]:
    """No program of the mesh can write another byte to any file, its log included."""
    pids = [seat.pid for seat in scene.stage.seats]
    limits = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    for pid, (_, hard) in limits.items():
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    try:
        scene.notes += await _register_and_forget(scene.stage)
        yield
        scene.notes += await _register_and_forget(scene.stage)
    finally:
        for pid, limit in limits.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limit)


async def _register_and_forget(stage: Stage) -> list[str]:
    """Ask the gateway for something that it would store. What was wrong with its answers."""
    service = {"name": "chaos", "host": "127.0.0.1", "port": 9, "status": "running"}
    try:
        made = await stage.http.post(f"{stage.url}/services", json=service)
        gone = await stage.http.delete(f"{stage.url}/services/chaos")
    except httpx2.HTTPError as error:
        return [f"the gateway did not answer a registration: {type(error).__name__}"]
    wanted = (201, 200)
    found = (made.status_code, gone.status_code)
    return [] if found == wanted else [f"a registration was answered with {found}"]


@asynccontextmanager
async def clock_step(scene: Scene) -> AsyncIterator[None]:
    """The wall clock of all programs jumps by hours; the monotonic one does not."""
    set_clock(scene.stage.plan.env, scene.source.choice((-1, 1)) * scene.source.uniform(1, 12))
    yield


KINDS: dict[str, Kind] = {
    "worker-kill": Kind(worker_kill, target=0.5, model=DEMO, tokens=300, local=True),
    "worker-stop": Kind(worker_stop, target=4.5, model=DEMO, tokens=300, local=True),
    "node-kill": Kind(node_kill, target=1.0, local=True),
    "node-stop": Kind(node_stop, target=4.5, local=True),
    "black-hole": Kind(black_hole, target=4.5, local=True, network=True),
    "latency": Kind(latency, target=4.5, network=True),
    "bootstrap-kill": Kind(bootstrap_kill, target=0.5),
    "gateway-kill": Kind(gateway_kill, model=DEMO, tokens=300, sockets=True),
    "slow-reader": Kind(slow_reader, target=0.5, flood=True, tokens=400),
    "disk-full": Kind(disk_full, target=0.5),
    "clock-step": Kind(clock_step, target=0.5, clock=True),
}


def set_clock(env: dict[str, str] | None, hours: float) -> None:
    """Let the programs that have this environment see another time from now on."""
    assert env is not None
    # In place: the file is mapped into programs, which would die of a moment without content.
    with Path(env["SHIFT_FILE"]).open("r+b") as file:
        file.write(struct.pack("l", round(hours * HOUR)))


def clock_environment(folder: Path) -> dict[str, str]:
    """The environment of programs whose wall clock `set_clock` moves. Raises RuntimeError where that cannot be had."""
    library = folder / "shifted_clock.so"
    compiler = shutil.which("cc")
    if compiler is None:
        raise RuntimeError("no C compiler: a clock that jumps cannot be built")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(library), str(CLOCK_SOURCE), "-ldl"], check=True, capture_output=True)
    env = {"LD_PRELOAD": str(library), "SHIFT_FILE": str(folder / "shift")}
    Path(env["SHIFT_FILE"]).write_bytes(struct.pack("l", 0))
    return env
