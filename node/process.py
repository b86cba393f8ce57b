"""One child process: started in a session of its own, its output kept, ended with its whole group.

1. stdout and stderr are one stream of lines; the last `KEPT_LINES` stay, each cut at `LINE_LIMIT` bytes.
2. `run` returns only when the child is dead and reaped. Cancelling it ends the group: SIGTERM, `grace` seconds, SIGKILL.
3. When the leader is dead, whatever is left of its group is killed: nothing outlives a child.
4. A child does not die with us by a signal: PDEATHSIG follows the thread that forked, and trio forks in a thread that ends.
   Whoever starts one gives it something that reaches its end of file with us: a socket, a pipe.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from node.cause import cause_of_death

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

KEPT_LINES = 200
LINE_LIMIT = 4096
"""Bytes of one line of output that are kept."""
_OUTPUT_GRACE = 0.5
"""Seconds that a dead child's output may take to end: a stray grandchild can hold the pipe open."""


class ChildProcess:
    """One life of one child. Start it with `nursery.start(child.run)`."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        pass_fds: Sequence[int] = (),
        environment: Mapping[str, str] | None = None,
        directory: Path | None = None,
        grace: float = 5.0,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.pid: int | None = None
        self.returncode: int | None = None
        self._argv = list(argv)
        self._pass_fds = tuple(pass_fds)
        self._environment = environment
        self._directory = directory
        self._grace = grace
        self._on_line = on_line
        self._oom_kills = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the child, `started()` once it exists, and return when it is gone. Raises OSError when it cannot be started."""
        self._oom_kills = oom_kills()
        process = await trio.lowlevel.open_process(
            self._argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=self._pass_fds,
            env=self._environment,
            cwd=self._directory,
            start_new_session=True,
        )
        self.pid = process.pid
        try:
            task_status.started()
            await self._watch(process)
        finally:
            await self._end(process)
            self.returncode = process.returncode

    @property
    def cause(self) -> str:
        """Why the child died, in one line; meaningful once `run` has returned."""
        return cause_of_death(self.returncode, self.lines, memory_ran_out=oom_kills() > self._oom_kills)

    async def _watch(self, process: trio.Process) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._capture, process)
            await process.wait()
            nursery.cancel_scope.deadline = trio.current_time() + _OUTPUT_GRACE

    async def _capture(self, process: trio.Process) -> None:
        assert process.stdout is not None
        rest = b""
        async for data in process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._keep(line)
            rest = rest[-LINE_LIMIT:]
        self._keep(rest)

    def _keep(self, raw: bytes) -> None:
        line = raw[:LINE_LIMIT].decode("utf-8", "replace").rstrip()
        if line:
            self.lines.append(line)
            if self._on_line is not None:
                self._on_line(line)

    async def _end(self, process: trio.Process) -> None:
        with trio.CancelScope(shield=True):
            if process.returncode is None:
                kill_group(process.pid, signal.SIGTERM)
                with trio.move_on_after(self._grace):
                    await process.wait()
            # Also when the leader is gone. Its number cannot have been given away while members of its group live.
            kill_group(process.pid, signal.SIGKILL)
            await process.wait()
            if process.stdout is not None:
                await process.stdout.aclose()


def kill_group(leader: int, number: signal.Signals) -> None:
    """Send a signal to the process group of `leader`; a group that is gone already is fine."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, number)


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory since it started; 0 where it does not tell."""
    with suppress(OSError, ValueError):
        for line in Path("/proc/vmstat").read_text("ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0
