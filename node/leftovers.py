"""What a node that died left running: found by the next one on the same state folder, and ended before anything is started.

1. A guard ends its child with the node (`node.guard`), so this is for the worst: node and guard killed together.
2. A number alone names nobody: who is ended has the number and the start time that were written down. When that leader is gone,
   whoever is left of its session, which keeps its number from others, is ended if it started later.
3. Nothing here stops a node: a file that cannot be read or written costs a line in the log.
"""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import psutil  # type: ignore[import-untyped]  # psutil ships no types
import trio

if TYPE_CHECKING:
    from collections.abc import Iterable

FILE = "children.json"
GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL, and for the death after it."""
_BOOT = Path("/proc/sys/kernel/random/boot_id")
_SAME = 0.02
"""Seconds by which two readings of one start time may differ."""

logger = logging.getLogger(__name__)


class Record(msgspec.Struct, frozen=True):
    """One child: the leader of its session. `started` in seconds after the machine's start."""

    pid: int
    started: float


class _Written(msgspec.Struct, frozen=True):
    machine: str
    """Which start of the machine the numbers are of."""
    children: list[Record]


class Leftovers:
    """The children of one state folder, written down while they live."""

    def __init__(self, path: Path) -> None:
        """`path` is the file; its folder is there."""
        self._path = path
        self._noted: frozenset[int] = frozenset()

    def note(self, pids: Iterable[int]) -> None:
        """These, and no others, run now. Writes only what changed."""
        noted = frozenset(pids)
        if noted == self._noted:
            return
        self._noted = noted
        children = [Record(pid, started) for pid in sorted(noted) if (started := _started(pid)) is not None]
        fresh = self._path.with_name(f"{FILE}.new")
        try:
            fresh.write_bytes(msgspec.json.encode(_Written(_machine(), children)))
            fresh.replace(self._path)
        except OSError as error:
            logger.warning("cannot write %s: %s; should this node be killed, look for its children by hand", FILE, error.strerror)

    async def end(self) -> list[int]:
        """End whatever the last node on this folder left running; who it was."""
        found = [process for record in self._read() for process in _family(record)]
        if not found:
            return []
        logger.warning("the last node left %d processes behind; ending them", len(found))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in found:
                with suppress(psutil.Error):
                    process.send_signal(number)  # which looks at its start time again
            with trio.move_on_after(GRACE):
                while any(_lives(process) for process in found):  # noqa: ASYNC110 - their ends set no event of ours
                    await trio.sleep(0.02)
                break
        return [process.pid for process in found]

    def _read(self) -> list[Record]:
        try:
            written = msgspec.json.decode(self._path.read_bytes(), type=_Written)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.MsgspecError) as error:
            logger.warning("cannot read %s: %s", FILE, error)
            return []
        return written.children if written.machine == _machine() else []


def _family(record: Record) -> list[psutil.Process]:
    """Whoever is left of the session that the recorded child leads."""
    leader = _started(record.pid)
    if leader is not None and abs(leader - record.started) > _SAME:
        return []  # the number is somebody else's by now
    members = []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):
            started = _started(process.pid)
            if os.getsid(process.pid) == record.pid and started is not None and started >= record.started - _SAME:
                members.append(process)
    return members


def _started(pid: int) -> float | None:
    """When it started, in seconds after the machine's start, which no change of the clock moves. None when it is gone."""
    try:
        return float(psutil.Process(pid).create_time() - psutil.boot_time())
    except psutil.Error:
        return None


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _machine() -> str:
    """Where numbers of processes mean the same: this start of this machine, seen from this container."""
    known = [str(psutil.boot_time())] if not _BOOT.exists() else []
    with suppress(OSError):
        known += [_BOOT.read_text("ascii").strip(), os.readlink("/proc/self/ns/pid")]
    return " ".join(known)
