"""The life of a program: state folder, identity, ready line, signals, exit code.

1. One process per state folder: it holds the lock on `lock` until it ends, however it ends.
2. The first SIGTERM or SIGINT sets `stopping`; a second cancels everything at once. Before the ready line there is nothing to
   finish, so the first one cancels.
3. A program that has not returned `drain_timeout` + 5 s after `stopping` is cancelled; one deaf to that is ended 5 s later.
4. The one line on stdout is the ready line. Whoever reads it may go away: that never stops a program.
5. A parent that passes the read end of a pipe as `INFERMESH_PARENT_FD` and keeps the write end takes the program along when it
   dies, however it dies. The variable is taken out of the environment: it is for this process alone.
6. The soft limit of open files is raised as far as the hard one allows, up to `OPEN_FILES`: every client and peer is one.
7. `--log-level mesh.runtime=debug` tells every `COUNT_EVERY` seconds how many tasks there are: if that only grows, it leaks.
8. Exit codes: 0 well, 1 crashed or cut short, 2 the start-up cannot succeed (one line on stderr says what to do).
"""

from __future__ import annotations

import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING, TypeVar

import trio

from mesh import logs
from mesh.access import Access, open_access
from mesh.config import CommonConfig, load
from mesh.errors import Denied, Misconfigured
from mesh.identity import Identity, load_identity
from mesh.installation import check_installation
from mesh.state import StateFolder, default_state_dir

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

    from mesh.messages.record import Role

logger = logging.getLogger(__name__)

PARENT_FD = "INFERMESH_PARENT_FD"
"""The environment variable of rule 5."""

OPEN_FILES = 65_536
"""Enough for every bound of ours together; more would only make children that close all descriptors slow."""

COUNT_EVERY = 2.0

_STOP_MARGIN = 5.0
"""Seconds a program may take beyond its drain time-out, and then beyond its cancellation."""

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

Config = TypeVar("Config", bound=CommonConfig)


def launch(
    role: Role,
    schema: type[Config],
    serve: Callable[[Program, Config], Awaitable[None]],
    *,
    description: str,
    argv: Sequence[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> int:
    """A whole entry point: load the configuration, then `run_program`. Returns the exit code."""
    try:
        config = load(
            schema,
            sys.argv[1:] if argv is None else argv,
            os.environ if environ is None else environ,
            program=f"mesh-{role}",
            description=description,
        )
    except Misconfigured as error:
        return _refuse(role, error)
    return run_program(role, config, lambda program: serve(program, config))


def run_program(role: Role, config: CommonConfig, serve: Callable[[Program], Awaitable[None]]) -> int:
    """Run `serve` until it returns; it should return soon after `stopping` is set. Returns the exit code (rule 8)."""
    logs.configure(config.log_format, config.log_level)
    try:
        check_installation()
        raise_file_limit()
        parent = _parent_pipe()
        with StateFolder(config.state_dir or default_state_dir(role)) as folder:
            program = Program(role, config, folder)
            trio.run(program.live, serve, parent)
            return 1 if program.cut_short else 0
    except KeyboardInterrupt:  # before trio took the signals over
        return 1
    except BaseException as error:
        refusal = _refusal_in(error)
        if refusal is not None:
            return _refuse(role, refusal)
        if not isinstance(error, Exception | BaseExceptionGroup):
            raise
        logger.exception("mesh-%s crashed", role)
        return 1


class Program:
    """A running program, as its `serve` sees it."""

    def __init__(self, role: Role, config: CommonConfig, folder: StateFolder) -> None:
        self.role = role
        self.state_dir: Path = folder.path
        self.identity: Identity = load_identity(folder.path / "identity.pem")
        self.access: Access = open_access(config, folder.path)
        self.name: str = display_name(config.name, self.identity.peer_id)
        self.stopping = trio.Event()
        self.cut_short = False
        self._folder = folder
        self._drain_timeout = config.drain_timeout
        self._is_ready = False
        self._scope = trio.CancelScope()

    def ready(self, *, addresses: list[str], http: str | None) -> None:
        """Print the one line on stdout and write the live addresses into the state folder. Call it once."""
        assert not self._is_ready
        self._is_ready = True
        line = {
            "event": "ready",
            "role": self.role,
            "peer_id": self.identity.peer_id,
            "addresses": addresses,
            "http": http,
            "pid": os.getpid(),
        }
        self._folder.write_addresses(line)
        _print_line(self._sentence(addresses, http) if _is_terminal() else json.dumps(line))
        logger.info("ready: %s as peer %s", self.name, self.identity.peer_id)

    def _sentence(self, addresses: list[str], http: str | None) -> str:
        where = f" at {http}" if http else ""
        reach = f"; peers reach it at {addresses[-1]}" if addresses else ""
        return f"mesh-{self.role} is ready{where}{reach}. Ctrl-C stops it."

    async def live(self, serve: Callable[[Program], Awaitable[None]], parent: int | None) -> None:
        """Run `serve` and what watches over it. For `run_program`."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._obey_signals)
                nursery.start_soon(self._limit_drain)
                nursery.start_soon(self._count_tasks)
                if parent is not None:
                    nursery.start_soon(self._follow_parent, parent)
                await serve(self)
                nursery.cancel_scope.cancel()

    async def _obey_signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(*_SIGNALS) as received:
            task_status.started()
            async for number in received:
                if self.stopping.is_set():
                    self._cut("a second signal")
                    return
                logger.info("stopping: %s", signal.Signals(number).name)
                self.stopping.set()
                if not self._is_ready:
                    self._cancel()
                    return

    async def _limit_drain(self) -> None:
        await self.stopping.wait()
        await trio.sleep(self._drain_timeout + _STOP_MARGIN)
        self._cut("the drain time-out")

    async def _count_tasks(self) -> None:
        while logger.isEnabledFor(logging.DEBUG):
            logger.debug("%d tasks", trio.lowlevel.current_statistics().tasks_living)
            await trio.sleep(COUNT_EVERY)

    async def _follow_parent(self, pipe: int) -> None:
        while True:
            await trio.lowlevel.wait_readable(pipe)
            if not os.read(pipe, 1024):
                self._cut("the end of the parent process")
                return

    def _cut(self, reason: str) -> None:
        logger.warning("stopping at once, unfinished: %s", reason)
        self.cut_short = True
        self._cancel()

    def _cancel(self) -> None:
        self._scope.cancel()
        # Something may be deaf to cancellation, a thread of a library for one: rule 3.
        watchdog = threading.Timer(_STOP_MARGIN, os._exit, (1,))
        watchdog.daemon = True
        watchdog.start()


def raise_file_limit(wanted: int = OPEN_FILES) -> int:
    """Raise the soft limit of open files to `wanted`, or to the hard one. Never lowers it. Returns what holds now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    target = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft == resource.RLIM_INFINITY or soft >= target:
        return soft
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
    except (ValueError, OSError) as error:  # macOS has a lower limit that it does not tell
        logger.debug("the limit of open files stays at %d: %s", soft, error)
        return soft
    return target


def display_name(name: str, peer_id: str) -> str:
    """The name shown to people: the operator's, or the host's with the end of the peer id."""
    return name or f"{socket.gethostname()}-{peer_id[-8:]}"


def _parent_pipe() -> int | None:
    text = os.environ.pop(PARENT_FD, "")
    if not text:
        return None
    try:
        pipe = int(text)
        os.set_inheritable(pipe, False)
        os.set_blocking(pipe, False)
    except (ValueError, OSError) as error:
        raise Misconfigured(
            f"{PARENT_FD}={text!r} is not an open pipe; unset it, it is for programs that start this one"
        ) from error
    return pipe


def _is_terminal() -> bool:
    return sys.stdout is not None and not sys.stdout.closed and sys.stdout.isatty()


def _print_line(line: str) -> None:
    try:
        print(line, flush=True)
    except (OSError, ValueError) as error:
        logger.warning("nobody reads the ready line: %s", error)
        # The line stays in Python's buffer and would be tried again, with a complaint, at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)


def _refusal_in(error: BaseException) -> Misconfigured | Denied | None:
    """The start-up error inside nested groups. A mesh that refuses this peer (Denied) is one: a retry would not help."""
    if isinstance(error, BaseExceptionGroup):
        return next((found for inner in error.exceptions if (found := _refusal_in(inner)) is not None), None)
    return error if isinstance(error, Misconfigured | Denied) else None


def _refuse(role: Role, error: Misconfigured | Denied) -> int:
    message = " ".join(error.message.split())
    print(f"mesh-{role}: {message}", file=sys.stderr)
    return 2
