"""Real processes for system tests and benchmarks: started, watched, and gone at the end whatever happens."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import psutil
import trio

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

READY_LIMIT = 60.0  # seconds; a hang guard, two busy cores load torch in about ten
MODULES = {"bootstrap": "bootstrap", "node": "node", "gateway": "gateway"}


class NotReady(AssertionError):
    """A program ended or hung before its ready line."""


@dataclass
class Program:
    """One running program of ours."""

    role: str
    process: subprocess.Popen[str]
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return str(self.ready["http"])

    @property
    def address(self) -> str:
        """The loopback address others can be pointed at."""
        return str(self.ready["addresses"][0])

    def children(self) -> list[psutil.Process]:
        return [p for p in psutil.Process(self.process.pid).children(recursive=True) if p.status() != psutil.STATUS_ZOMBIE]

    def worker(self) -> psutil.Process:
        """The one worker process of a node."""
        (worker,) = [child for child in self.children() if "node.worker" in child.cmdline()]
        return worker

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    async def stop(self, limit: float = 30.0) -> int:
        """SIGTERM, then the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.wait(limit)

    async def wait(self, limit: float = 30.0) -> int:
        return await trio.to_thread.run_sync(lambda: self.process.wait(limit))


class Fleet:
    """Starts programs that know nothing of other meshes on this machine."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.mesh = f"test-{secrets.token_hex(6)}"
        self.programs: list[Program] = []

    def spawn(self, role: str, *args: str, env: dict[str, str] | None = None, command: list[str] | None = None) -> Program:
        """Start a program without waiting until it is ready."""
        name = f"{role}-{len(self.programs)}"
        log = self.logs / f"{name}.log"
        argv = command or [
            *(sys.executable, "-m", MODULES[role], "--mesh", self.mesh),
            *("--state-dir", str(self.logs / name), "--listen", "/ip4/127.0.0.1/tcp/0", *args),
        ]
        with log.open("w") as stderr:
            process = subprocess.Popen(
                argv,
                stdout=subprocess.PIPE,
                stderr=stderr,
                stdin=subprocess.DEVNULL,
                text=True,
                env={**os.environ, **(env or {})},
            )
        program = Program(role, process, log)
        self.programs.append(program)
        return program

    async def ready(self, program: Program, limit: float = READY_LIMIT) -> Program:
        """Wait for the ready line. Raises NotReady with the end of its log when it ends first or takes too long."""
        assert program.process.stdout is not None
        line = ""
        with trio.move_on_after(limit):
            line = await trio.to_thread.run_sync(program.process.stdout.readline, abandon_on_cancel=True)
        if not line:
            raise NotReady(f"{program.role} was not ready (exit code {program.process.poll()}):\n{tail(program.log)}")
        program.ready = json.loads(line)
        return program

    async def start(self, role: str, *args: str, env: dict[str, str] | None = None) -> Program:
        return await self.ready(self.spawn(role, *args, env=env))

    async def node(self, *args: str, **options: Any) -> Program:
        return await self.start("node", "--port", "0", *args, **options)

    async def mock(self, models: str = "model-a", *args: str) -> Program:
        """A node with the mock backend: real links, no torch."""
        return await self.node("--service-type", "mock", "--args", models, *args)

    async def gateway(self, *args: str, **options: Any) -> Program:
        return await self.start("gateway", "--port", "0", *args, **options)

    def end(self) -> list[int]:
        """Kill all that still runs. The pids of children that outlived their program."""
        family: list[psutil.Process] = []
        for program in self.programs:
            if program.process.poll() is None:
                family += program.children()
                program.process.kill()
            program.process.wait(10)
            if program.process.stdout:
                program.process.stdout.close()
        _, alive = psutil.wait_procs(family, timeout=5)
        for process in alive:
            process.kill()
        return [process.pid for process in alive]


def tail(log: Path, lines: int = 30) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


async def until(condition: Callable[[], Any], limit: float = 30.0, every: float = 0.05) -> Any:
    """Wait for something to become true; what it returned. `condition` may be async."""
    with trio.fail_after(limit):
        while True:
            value = condition()
            if hasattr(value, "__await__"):
                value = await value
            if value:
                return value
            await trio.sleep(every)
