"""One program of a local mesh, as a child process of `mesh up`.

1. It leads a session of its own: Ctrl-C reaches `mesh up` alone, which then stops its children in good order.
2. It dies with `mesh up`, however that dies: it holds the read end of a pipe (`mesh.runtime`, rule 5).
3. Its stderr goes to a file, so a parent that is gone or busy never blocks it; of its stdout only the ready line is kept.
4. Leaving `run`, for whatever reason, stops it: SIGTERM, SIGKILL after `limit` seconds or when `hurry` is set.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import trio

from mesh.errors import BackendFailed, Misconfigured, TimedOut, Unavailable
from mesh.runtime import PARENT_FD

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

READY_LIMIT = 120.0
"""Seconds from start to the ready line. Loading the demo model takes some; two minutes mean that it hangs."""

_LINE_LIMIT = 64 * 1024
_TAIL_BYTES = 8192
_FOREIGN_SETTINGS = ("INFERMESH_", "LIBP2P_", "HF_SERVER_")


class Child:
    """`run` is its life; `ready` is what its ready line said."""

    def __init__(self, role: str, module: str, arguments: Sequence[str], *, log: Path, limit: float) -> None:
        self.role = role
        self.log = log
        self.ready: dict[str, Any] = {}
        self.hurry = trio.Event()
        self._argv = [sys.executable, "-P", "-m", module, *arguments]
        self._limit = limit

    async def run(self, parent_pipe: int, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """`started()` when it is ready. Raises Misconfigured (exit code 2) or BackendFailed when it ends, else TimedOut."""
        with self.log.open("ab") as stderr:
            process = await trio.lowlevel.open_process(
                self._argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=stderr,
                start_new_session=True,
                pass_fds=(parent_pipe,),
                env=_environment(parent_pipe),
            )
        try:
            await self._live(process, task_status)
        finally:
            with trio.CancelScope(shield=True):
                await self._stop(process)

    async def _live(self, process: trio.Process, task_status: trio.TaskStatus[None]) -> None:
        assert process.stdout is not None
        with trio.move_on_after(READY_LIMIT) as waiting:
            self.ready = await _ready_line(process.stdout)
            if not self.ready:
                await process.wait()
        if waiting.cancelled_caught:
            raise TimedOut(f"the {self.role} was not ready within {READY_LIMIT:g} s; its log is {self.log}{self.last_lines()}")
        if self.ready:
            task_status.started()
            async for _ in process.stdout:
                pass
        code = await process.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        ended = f"the {self.role} ended ({how}){self.last_lines()}"
        raise Misconfigured(ended) if code == 2 else BackendFailed(ended, code="child_ended")

    async def _stop(self, process: trio.Process) -> None:
        with suppress(ProcessLookupError):
            process.terminate()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kill_later, process)
            if process.stdout is not None:
                await process.stdout.aclose()
            await process.wait()
            nursery.cancel_scope.cancel()

    async def _kill_later(self, process: trio.Process) -> None:
        with trio.move_on_after(self._limit):
            await self.hurry.wait()
        process.kill()

    def last_lines(self, count: int = 8) -> str:
        """The end of its log, for an error message: indented, on lines of their own."""
        with self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - _TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()[-count:]
        return "".join(f"\n    {line}" for line in lines)


async def _ready_line(stdout: trio.abc.ReceiveStream) -> dict[str, Any]:
    """The first line as JSON; empty when the program closed its stdout first. Raises Unavailable when it is something else."""
    line = b""
    while b"\n" not in line and len(line) <= _LINE_LIMIT:
        data = await stdout.receive_some()
        if not data:
            return {}
        line += data
    with suppress(ValueError):
        ready = json.loads(line.partition(b"\n")[0])
        if isinstance(ready, dict) and ready.get("event") == "ready":
            return ready
    raise Unavailable(f"a program printed something else than its ready line: {line[:200]!r}")


def _environment(parent_pipe: int) -> dict[str, str]:
    # What configures the operator's real peers must not lead this mesh of its own into another one.
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN_SETTINGS)}
    return {**kept, PARENT_FD: str(parent_pipe)}
