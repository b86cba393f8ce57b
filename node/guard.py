"""A tiny process between a node and one child: it ends the child's whole family when it is told to, or when the node is gone.

Run as a script, isolated and without site packages, so that it is there in some milliseconds: `python -I -S guard.py STATUS_FD`.

1. stdin is a pipe whose other end only the node holds. It says first what to run (8 bytes of length, then a marshalled dict);
   then `T` = SIGTERM to the child's group, `K` = kill all of it. Its end means that the node is gone, however it died: SIGTERM,
   `ORPHAN_GRACE` seconds, SIGKILL.
2. STATUS_FD is told `pid N`, or `error ERRNO WHAT` when the child cannot be started, and `exit CODE` when the child is dead.
3. One thread only: on Linux the child dies with this very thread (PDEATHSIG), and its orphans become ours (subreaper), whatever
   session they made for themselves.
4. It ends when the child is dead and nothing of its family is left, or `CLEAR_LIMIT` seconds later.
"""

from __future__ import annotations

import marshal
import os
import select
import signal
import sys
import time

TYPE_CHECKING = False  # `typing` alone would double the time to start
if TYPE_CHECKING:
    from typing import Any

ORPHAN_GRACE = 0.5
CLEAR_LIMIT = 2.0
_PAUSE = 0.01
"""Seconds between two looks at a family that is being killed."""
_SUBREAPER, _DEATH_SIGNAL = 36, 1
"""Of prctl(2)."""
_RESTORED = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ)
"""What we, or Python, changed and the child should find as usual."""


class Guard:
    """One child and its family."""

    def __init__(self, status: int, control: bytes = b"") -> None:
        self._status = status
        self._control = control
        self._leader = 0
        self._listens = True
        self._deadline: float | None = None
        self._wakes, self._wake = os.pipe()
        self._linux = _prctl() if sys.platform == "linux" else None

    def run(self, what: dict[str, Any]) -> None:
        """Start the child and be there until its family is gone."""
        self._prepare()
        failure = self._start(what)
        if failure:
            self._tell(failure)
            return
        self._tell(f"pid {self._leader}")
        while (code := self._reap()) is None:
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._kill()
            self._listen()
        self._tell(f"exit {code}")
        self._clear()

    def _prepare(self) -> None:
        os.set_blocking(self._wake, False)
        os.set_blocking(self._wakes, False)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        if self._linux:
            self._linux(_SUBREAPER, 1)

    def _start(self, what: dict[str, Any]) -> str:
        """What went wrong; nothing when the child runs."""
        reads, writes = os.pipe()
        us = os.getpid()
        self._leader = os.fork()
        if self._leader == 0:
            try:
                self._become(what, us)
            except OSError as error:
                os.write(writes, f"error {error.errno} {error.filename or what['argv'][0]}".encode(errors="surrogateescape"))
            finally:
                os._exit(127)
        os.close(writes)
        for inherited in what["descriptors"]:
            os.close(inherited)
        with open(reads, "rb") as told:  # a successful exec closes the other end
            return told.read().decode(errors="surrogateescape")

    def _become(self, what: dict[str, Any], guard: int) -> None:
        os.setsid()
        if self._linux:
            self._linux(_DEATH_SIGNAL, signal.SIGKILL)
            if os.getppid() != guard:  # it died before it could be noticed
                return
        signal.set_wakeup_fd(-1)
        for number in _RESTORED:
            signal.signal(number, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDONLY) if what["stdin"] is None else what["stdin"], 0)
        if what["stdin"] is not None:
            os.close(what["stdin"])
        if what["directory"]:
            os.chdir(what["directory"])
        environment = os.environ if what["environment"] is None else what["environment"]
        os.execvpe(what["argv"][0], what["argv"], environment)  # noqa: S606 - no shell is meant

    def _listen(self) -> None:
        """Wait for a word of the node, a signal, or the time to kill."""
        wait = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if not self._control:
            ready, _, _ = select.select([self._wakes, *([0] if self._listens else [])], [], [], wait)
            if self._wakes in ready and signal.SIGTERM in os.read(self._wakes, 4096):
                self._end_in(ORPHAN_GRACE)
            if 0 in ready:
                self._control = os.read(0, 4096)
                if not self._control:
                    self._listens = False
                    self._end_in(ORPHAN_GRACE)
        for order in self._control:
            self._obey(order)
        self._control = b""

    def _obey(self, order: int) -> None:
        if order == ord("T"):
            self._signal(signal.SIGTERM)
        elif order == ord("K"):
            self._deadline = time.monotonic()

    def _end_in(self, grace: float) -> None:
        self._signal(signal.SIGTERM)
        self._deadline = time.monotonic() + grace

    def _kill(self) -> None:
        self._deadline = None
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        try:
            os.killpg(self._leader, number)
        except (ProcessLookupError, PermissionError):
            return  # it is gone, or became somebody whom we may not touch

    def _reap(self) -> int | None:
        """The leader's exit code, negative for a signal, once it is dead. Orphans are buried on the way."""
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return None
            if pid == self._leader:
                return os.waitstatus_to_exitcode(status)

    def _clear(self) -> None:
        """Kill what the leader left behind, and wait until it is gone."""
        limit = time.monotonic() + CLEAR_LIMIT
        while time.monotonic() < limit:
            # The group's number cannot have been given away while members of it live.
            self._signal(signal.SIGKILL)
            for orphan in _children():
                os.kill(orphan, signal.SIGKILL)  # it is ours and not buried yet, so the number is still its own
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                time.sleep(_PAUSE)

    def _tell(self, line: str) -> None:
        try:
            os.write(self._status, f"{line}\n".encode(errors="surrogateescape"))
        except OSError:
            return  # nobody is left who could hear it


def _children() -> list[int]:
    try:
        with open(f"/proc/self/task/{os.getpid()}/children", "rb") as file:
            return [int(pid) for pid in file.read().split()]
    except OSError:  # not Linux, or one without this file: the group is all that can be found
        return []


def _prctl() -> Any:
    import ctypes

    library = ctypes.CDLL(None)
    return lambda option, value: library.prctl(option, value, 0, 0, 0)


def _order() -> tuple[dict[str, Any] | None, bytes]:
    """What to run, and what came behind it. None when the node is gone before it said it."""
    said = b""
    while len(said) < 8 or len(said) < 8 + int.from_bytes(said[:8], "big"):
        data = os.read(0, 65536)
        if not data:
            return None, b""
        said += data
    end = 8 + int.from_bytes(said[:8], "big")
    # The node that started us wrote it, with the same interpreter.
    return marshal.loads(said[8:end]), said[end:]  # noqa: S302


def main() -> None:
    """Run as the head of this file says."""
    status = int(sys.argv[1])
    os.set_inheritable(status, False)
    what, rest = _order()
    if what is not None:
        Guard(status, rest).run(what)
    os._exit(0)


if __name__ == "__main__":
    main()
