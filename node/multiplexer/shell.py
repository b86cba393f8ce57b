"""Runs one hook: a path or an inline script, by `sh -c`, within a time limit.

1. A hook that ends in time is left alone with whatever it started: that belongs to it. What such processes go on printing is
   read by `strays`, so that they never stand still because nobody reads.
2. A hook that takes too long, or that we stop waiting for, is ended with its whole process group.
3. The last lines of its output are kept, for the cause.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from mesh.errors import Unavailable
from node.cause import cause_of_death
from node.process import KEPT_LINES, LINE_LIMIT, kill_group

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio.abc import ReceiveStream

GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL."""
_LAST_WORDS = 0.2
"""Seconds that output may take to end after the hook did; what it started may hold it open for ever."""


class Hook:
    """One run of a hook; `lines` is what it printed last."""

    def __init__(self, name: str, model: str, script: str, *, limit: float, strays: Callable[[ReceiveStream], None]) -> None:
        self.lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._name = name
        self._model = model
        self._script = script
        self._limit = limit
        self._strays = strays

    async def run(self) -> None:
        """Return when it exited with 0. Raises Unavailable with the cause when it did not, or not within its limit."""
        try:
            process = await self._start()
        except OSError as error:
            raise self._failed(f"could not be started: {error}") from error
        with trio.move_on_after(self._limit) as scope:
            try:
                await self._watch(process)
            finally:
                if process.returncode is None:
                    await _end(process)
        if scope.cancelled_caught:
            raise self._failed(f"took longer than {self._limit:g} s and was ended{self._said()}")
        if process.returncode != 0:
            raise self._failed(cause_of_death(process.returncode, self.lines))

    async def _start(self) -> trio.Process:
        return await trio.lowlevel.open_process(
            ["/bin/sh", "-c", self._script],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**os.environ, "LLMUX_MODEL": self._model, "INFERMESH_MODEL": self._model},
            start_new_session=True,
        )

    async def _watch(self, process: trio.Process) -> None:
        assert process.stdout is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._capture, process.stdout)
            await process.wait()
            nursery.cancel_scope.deadline = trio.current_time() + _LAST_WORDS
        self._strays(process.stdout)

    async def _capture(self, output: ReceiveStream) -> None:
        rest = b""
        with suppress(trio.BrokenResourceError):
            async for data in output:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._keep(line)
                rest = rest[-LINE_LIMIT:]
        self._keep(rest)

    def _keep(self, raw: bytes) -> None:
        line = raw[:LINE_LIMIT].decode("utf-8", "replace").rstrip()
        if line:
            self.lines.append(line)

    def _said(self) -> str:
        return f"; it said: {self.lines[-1][:300]}" if self.lines else ""

    def _failed(self, what: str) -> Unavailable:
        return Unavailable(f"the {self._name} hook of {self._model} {what}", code="hook_failed")


async def _end(process: trio.Process) -> None:
    with trio.CancelScope(shield=True):
        kill_group(process.pid, signal.SIGTERM)
        with trio.move_on_after(GRACE):
            await process.wait()
        # Also when the leader is gone: its number cannot have been given away while members of its group live.
        kill_group(process.pid, signal.SIGKILL)
        await process.wait()
        if process.stdout is not None:
            await process.stdout.aclose()


async def read_away(output: ReceiveStream) -> None:
    """Read and forget until nobody holds the other end any more."""
    async with output:
        with suppress(trio.BrokenResourceError):
            async for _ in output:
                pass
