"""One child process: started by a guard in a session of its own, its output kept, ended with its whole family.

1. stdout and stderr are one stream of lines; the last `KEPT_LINES` stay, each cut at `LINE_LIMIT` bytes, without secrets. Where
   somebody takes stdout as it comes, that is stderr alone.
2. `run` returns only when the child is dead and reaped. Cancelling it ends the group: SIGTERM, `grace` seconds, SIGKILL.
3. When the leader is dead, whatever is left of its family is killed: nothing outlives a child.
4. The child dies with us, however we die: its guard (`node.guard`) sees the end of a pipe that we alone hold. A signal would not
   do: PDEATHSIG follows the thread that forked, and trio forks in a thread that ends.
5. A guard that is killed takes its child along; what is left of the group is then killed from here.
"""

from __future__ import annotations

import marshal
import os
import signal
import subprocess
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from node.cause import cause_of_death
from node.redaction import Redaction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

KEPT_LINES = 200
LINE_LIMIT = 4096
"""Bytes of one line of output that are kept."""
_OUTPUT_GRACE = 0.5
"""Seconds that a dead child's output may take to end: a stray grandchild can hold the pipe open."""
_GUARD_LIMIT = 3.0
"""Seconds that a guard may take to clear up; then it is stuck, and gets killed."""
_GUARD = str(Path(__file__).with_name("guard.py"))


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
        feed: bytes | None = None,
        on_output: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:
        """`environment` None is our own. `grace` in seconds. `on_line` hears every line of output.

        `feed` is what it finds on stdin. `on_output` takes its stdout, which is read no faster than that returns.
        """
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self.pid: int | None = None
        self.returncode: int | None = None
        self._argv = list(argv)
        self._pass_fds = tuple(pass_fds)
        self._environment = environment
        self._directory = directory
        self._grace = grace
        self._on_line = on_line
        self._feed = feed
        self._on_output = on_output
        self._oom_kills = 0
        self._redaction = Redaction(argv, os.environ if environment is None else environment)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the child, `started()` once it exists, and return when it is gone. Raises OSError when it cannot be started."""
        self._oom_kills = oom_kills()
        told, tells = os.pipe()
        status = _Status(told)
        stdin = None if self._feed is None else _Stdin(self._feed)
        try:
            process = await trio.lowlevel.open_process(
                [sys.executable, "-I", "-S", _GUARD, str(tells)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if self._on_output is None else subprocess.PIPE,
                pass_fds=(*self._descriptors(stdin), tells),
                start_new_session=True,
            )
        except BaseException:
            await status.aclose()
            if stdin is not None:
                await stdin.aclose()
            raise
        finally:
            os.close(tells)
            if stdin is not None:
                os.close(stdin.reads)
        try:
            await self._watch(process, status, stdin, task_status)
        finally:
            await self._end(process, status, stdin)

    def hurry(self) -> None:
        """Give it no grace any more: when it is ended, then by SIGKILL."""
        self._grace = 0.0

    @property
    def cause(self) -> str:
        """Why the child died, in one line; meaningful once `run` has returned."""
        return cause_of_death(self.returncode, self.lines, memory_ran_out=oom_kills() > self._oom_kills)

    async def _watch(
        self, process: trio.Process, status: _Status, stdin: _Stdin | None, task_status: trio.TaskStatus[None]
    ) -> None:
        assert process.stdin is not None
        with suppress(trio.BrokenResourceError):  # A guard that was killed says nothing, which tells enough.
            await process.stdin.send_all(self._order(stdin))
        self._hear(await status.line())
        task_status.started()
        async with trio.open_nursery() as output:
            output.start_soon(self._pass_on, process)  # for as long as whoever takes it needs
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._capture, process)
                if stdin is not None:
                    nursery.start_soon(stdin.feed)
                await self._hear_out(status)
                await process.wait()
                nursery.cancel_scope.deadline = trio.current_time() + _OUTPUT_GRACE

    def _descriptors(self, stdin: _Stdin | None) -> list[int]:
        return [*self._pass_fds, *([] if stdin is None else [stdin.reads])]

    def _order(self, stdin: _Stdin | None) -> bytes:
        body = marshal.dumps(
            {
                "argv": self._argv,
                "descriptors": self._descriptors(stdin),
                "stdin": None if stdin is None else stdin.reads,
                "environment": None if self._environment is None else dict(self._environment),
                "directory": None if self._directory is None else str(self._directory),
            }
        )
        return len(body).to_bytes(8, "big") + body

    async def _hear_out(self, status: _Status) -> None:
        while line := await status.line():
            self._hear(line)

    def _hear(self, line: str) -> None:
        """What the guard told; nothing when it died first. Raises OSError."""
        match line.split(" ", 2):
            case ["pid", number]:
                self.pid = int(number)
            case ["exit", code]:
                self.returncode = int(code)
            case ["error", number, what]:
                raise OSError(int(number), os.strerror(int(number)), what)

    async def _pass_on(self, process: trio.Process) -> None:
        if self._on_output is not None:
            assert process.stdout is not None
            async for data in process.stdout:
                await self._on_output(bytes(data))

    async def _capture(self, process: trio.Process) -> None:
        stream = process.stdout if self._on_output is None else process.stderr
        assert stream is not None
        rest = b""
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._keep(line)
            rest = rest[-LINE_LIMIT:]
        self._keep(rest)

    def _keep(self, raw: bytes) -> None:
        line = self._redaction.apply(raw[:LINE_LIMIT].decode("utf-8", "replace").rstrip())
        if line:
            self.lines.append(line)
            if self._on_line is not None:
                self._on_line(line)

    async def _end(self, process: trio.Process, status: _Status, stdin: _Stdin | None) -> None:
        with trio.CancelScope(shield=True):
            if stdin is not None:
                await stdin.aclose()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._capture, process)  # A child that cannot write cannot end in good order.
                if self._on_output is not None:
                    nursery.start_soon(_discard, process.stdout)
                await self._stop(process)
                nursery.cancel_scope.cancel()
            with suppress(OSError):
                await self._hear_out(status)
            self._avenge()
            await status.aclose()
            for stream in (process.stdin, process.stdout, process.stderr):
                if stream is not None:
                    await stream.aclose()

    async def _stop(self, process: trio.Process) -> None:
        if self.pid is None and process.stdin is not None:
            # What to run may have been said in part: nothing but the end of it would be understood.
            await process.stdin.aclose()
        elif process.returncode is None and self._grace:
            await self._tell(process, b"T")
            with trio.move_on_after(self._grace):
                await process.wait()
        if process.returncode is None:
            await self._tell(process, b"K")
            with trio.move_on_after(_GUARD_LIMIT):
                await process.wait()
        kill_group(process.pid, signal.SIGKILL)
        await process.wait()

    async def _tell(self, process: trio.Process, order: bytes) -> None:
        assert process.stdin is not None
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError), trio.move_on_after(_GUARD_LIMIT):
            await process.stdin.send_all(order)

    def _avenge(self) -> None:
        """The guard ended without having told the child's end: rule 5."""
        if self.pid is not None and self.returncode is None:
            # The kernel gives the number of a group to nobody else while members of it live.
            kill_group(self.pid, signal.SIGKILL)
            self.returncode = -signal.SIGKILL


async def _discard(stream: trio.abc.ReceiveStream | None) -> None:
    assert stream is not None
    async for _ in stream:
        pass


class _Stdin:
    """What the child reads; `reads` is the end that is passed on to it."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.reads, writes = os.pipe()
        self._stream = trio.lowlevel.FdStream(writes)

    async def feed(self) -> None:
        """Write all of it. A child that does not read to the end is none the worse for it."""
        with suppress(trio.BrokenResourceError):
            await self._stream.send_all(self._data)
        await self._stream.aclose()

    async def aclose(self) -> None:
        """Feed it no more."""
        await self._stream.aclose()


class _Status:
    """What the guard tells, line by line."""

    def __init__(self, descriptor: int) -> None:
        self._stream = trio.lowlevel.FdStream(descriptor)
        self._rest = b""

    async def line(self) -> str:
        """The next line; empty at the end."""
        while b"\n" not in self._rest:
            data = await self._stream.receive_some()
            if not data:
                return ""
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="surrogateescape")

    async def aclose(self) -> None:
        """Hear no more."""
        await self._stream.aclose()


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
