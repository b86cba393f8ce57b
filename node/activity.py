"""Whether a process computes, or would if it were given a processor: what tells a slow worker from one that hangs."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]  # psutil ships no types

if TYPE_CHECKING:
    from collections.abc import Iterator

_LEAST = 0.02
"""Seconds of processor time between two looks that count as computing: two ticks of the kernel's clock."""
_WANTING = frozenset("RD")
"""Running or runnable, or waiting for a disk."""


class Activity:
    """Looks at one process again and again."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._spent = 0.0

    def seen(self) -> bool:
        """True when it computed since the last look, or is about to. False when it is gone. Takes well below a millisecond."""
        try:
            times = psutil.Process(self._pid).cpu_times()
        except psutil.Error:
            return False
        spent, self._spent = self._spent, times.user + times.system
        return self._spent - spent >= _LEAST or any(state in _WANTING for state in _states(self._pid))

    def dying(self) -> bool:
        """True when it is dead, also while its other threads, and the kernel, still clear up."""
        try:
            return bool(psutil.Process(self._pid).status() == psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return True


def _states(pid: int) -> Iterator[str]:
    """The state of each thread as one letter; none where the kernel does not tell."""
    for path in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError, IndexError):  # a thread may end while we look
            # The name before it is in brackets, and may hold anything.
            yield path.read_text("utf-8", "replace").rpartition(")")[2].split()[0]
