"""A backend that is a program of its own: any server that speaks OpenAI's API, as a supervised child.

1. It listens at P. When something else has that port, it is not started: a stranger's answers must not pass for its own.
2. Ready is `ServedBackend.look` within `start_timeout`; what never answers is ended and started anew.
3. Alive is not enough: silence for `progress_timeout`, of its list, or of all requests that wait for it, ends it as hung. It is
   asked for its list only while nothing is under way: some servers do one thing at a time, or drop an answer for the next
   request.
4. Asleep, the program does not run; vLLM goes to sleep itself and keeps its weights in the host's memory, unless it is told to
   sleep deeper (`sleep_level` 2). A wake is done when the
   model has said a token.
"""

from __future__ import annotations

import logging
import math
import socket
from typing import TYPE_CHECKING

import trio

from mesh.errors import MeshError, Misconfigured, Unavailable
from node.backends.argv import check_program, child_argv, child_environment
from node.backends.base import BackendStatus
from node.backends.served import ServedBackend
from node.process import ChildProcess
from node.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.messages.record import ModelState
    from node.backends.servers import Server
    from node.backends.unit import Unit

LOOK_SECONDS = 5.0
"""How long one look may take."""
FIRST_LOOK = 0.1
"""Seconds after the start; the waits between looks double up to a second."""
SLEEPS_ITSELF = ("vllm",)
SLEEP = "/sleep?level=1"
WAKE = "/wake_up"

logger = logging.getLogger(__name__)


class ProgramBackend(ServedBackend):
    """One program and its models; see the head of this file."""

    def __init__(self, unit: Unit, server: Server) -> None:
        """Raises Misconfigured when the program cannot be started like this."""
        super().__init__(unit, server)
        self._argv = child_argv(unit.settings, host=unit.host, port=unit.port)
        check_program(unit.settings, self._argv)
        self._supervisor = Supervisor(unit.id, policy=unit.restarts, changed=self._state_changed)
        self._child: ChildProcess | None = None
        self._asleep = self._dozes = self._ended = False
        self._awake, self._gone = trio.Event(), trio.Event()
        self._lives = trio.CancelScope()
        self._ready = trio.Event()
        self._heard = -math.inf

    @property
    def state(self) -> ModelState:
        """As the supervisor sees it, or asleep."""
        return "asleep" if self._asleep else self._supervisor.state

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the program alive until cancelled. Raises Misconfigured when its port is taken at the first start."""
        if problem := self._port_problem():
            raise Misconfigured(problem)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._supervise)
                await self._supervisor.settled.wait()
                task_status.started()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._server.aclose()

    def status(self) -> BackendStatus:
        """What P+1 tells of it."""
        supervisor, running = self._supervisor, self.state == "ready"
        return BackendStatus(
            state=self.state,
            running=running,
            pid=self._child.pid if self._child is not None else None,
            restarts=supervisor.restarts,
            uptime=supervisor.uptime if running else 0.0,
            last_error=supervisor.last_error,
            refused=supervisor.refused,
            heard=trio.current_time() - self._heard if self._heard > 0 else None,
        )

    # Sleeping and waking

    async def sleep(self) -> None:
        """Give the accelerator's memory back; nothing when it is asleep. Raises MeshError when the program refuses."""
        if self._asleep:
            return
        if self._sleeps_itself and self._supervisor.state == "ready":
            await self._server.post(SLEEP)
            self._dozes = True
            self._fall_asleep()
        else:
            self._fall_asleep()
            await self._stop()

    async def _stop(self) -> None:
        self._awake = trio.Event()
        self._lives.cancel()
        await self._gone.wait()

    async def wake(self) -> None:
        """Serve again; returns once the model said a token, at once when it is awake. Raises Unavailable."""
        if self.state == "ready":
            return
        try:
            with trio.fail_after(self._unit.settings.start_timeout):
                await self._wake()
                await self.prove()
        except (trio.TooSlowError, MeshError) as error:
            said = error.message if isinstance(error, MeshError) else self._supervisor.last_error or "it is still loading"
            if self._asleep and not (self._dozes or self._ended):
                await self._stop()
            raise Unavailable(f"{self._unit.id} did not wake: {said}", code="wake_failed") from error
        self._asleep = self._dozes = False
        self.changed()

    async def _wake(self) -> None:
        if self._dozes and self._child is not None:
            await self._server.post(WAKE)
            return
        self._awake.set()
        if self._ended:
            raise Unavailable(self._supervisor.last_error or "it is not running")
        await self._ready.wait()

    def _fall_asleep(self) -> None:
        self._asleep = True
        self.changed()

    @property
    def _sleeps_itself(self) -> bool:
        return self._unit.settings.kind in SLEEPS_ITSELF and self._unit.settings.sleep_level != 2

    # One life after the other

    async def _supervise(self) -> None:
        while True:
            with trio.CancelScope() as self._lives:
                await self._supervisor.run(self._live)
            if not self._lives.cancelled_caught:
                self._ended = True
                return
            self._gone.set()
            await self._awake.wait()
            self._gone = trio.Event()

    async def _live(self) -> str:
        """One life of the program; returns why it ended."""
        if problem := self._port_problem():
            return problem
        settings, problems = self._unit.settings, list[str]()
        child = ChildProcess(
            self._argv,
            environment=child_environment(settings),
            directory=settings.work_dir,
            grace=settings.grace,
            on_line=self._log_line,
        )
        try:
            async with trio.open_nursery() as nursery:
                self._child = child
                nursery.start_soon(self._attend, problems, nursery.cancel_scope)
                try:
                    await child.run()
                except OSError as error:
                    problems.append(f"it could not be started: {error}")
                nursery.cancel_scope.cancel()
        finally:
            self._child = None
            self._ready = trio.Event()
            self._supervisor.lost()
        return problems[0] if problems else child.cause

    async def _attend(self, problems: list[str], life: trio.CancelScope) -> None:
        """See it ready, then see that it stays so; what is wrong ends its life."""
        problem = await self._see_ready() or await self._see_progress()
        self._supervisor.lost()
        problems.append(problem)
        life.cancel()

    async def _see_ready(self) -> str | None:
        wait, said = FIRST_LOOK, "it said nothing"
        with trio.move_on_after(self._unit.settings.start_timeout):
            while True:
                await trio.sleep(wait)
                problem = await self._hear(self.look, LOOK_SECONDS) or await self._doze_again()
                if problem is None:
                    self._supervisor.ready()
                    self._ready.set()
                    return None
                said, wait = problem, min(1.0, 2 * wait)
        return f"not ready within start_timeout, {self._unit.settings.start_timeout:g} s, at port {self._unit.port}: {said}"

    async def _doze_again(self) -> str | None:
        """A program that died in its sleep comes back awake."""
        if self._dozes:
            try:
                await self._server.post(SLEEP)
            except MeshError as error:
                return error.message
        return None

    async def _see_progress(self) -> str:
        limit = self._unit.settings.progress_timeout
        busy = self._heard
        while True:
            await trio.sleep(min(LOOK_SECONDS, limit / 4))
            if self._asleep:
                self._heard = trio.current_time()
                continue
            if self.activity.stalled > limit:
                return f"hung: no progress for {limit:g} s with {self.activity.in_flight} requests under way"
            if self.activity.in_flight:
                busy = trio.current_time()
                continue
            await self._hear(self.listen, min(LOOK_SECONDS, limit))
            if trio.current_time() - max(self._heard, self.activity.heard, busy) > limit:
                return f"hung: alive, but it answered nothing for {limit:g} s"

    async def _hear(self, ask: Callable[[], Awaitable[None]], limit: float) -> str | None:
        """What is wrong with it now; None when it answers within `limit` seconds."""
        try:
            with trio.fail_after(limit):
                await ask()
        except MeshError as error:
            return error.message
        except trio.TooSlowError:
            return f"no answer within {limit:g} s"
        self._heard = trio.current_time()
        return None

    def _port_problem(self) -> str | None:
        if self._unit.settings.url:
            return None
        family = socket.AF_INET6 if ":" in self._unit.host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self._unit.host, self._unit.port))
            except OSError as error:
                return (
                    f"port {self._unit.port} of {self._unit.id} cannot be had: {error.strerror}; stop the program that has it, or"
                    " choose another --port"
                )
        return None

    def _state_changed(self) -> None:
        self.changed()

    def _log_line(self, line: str) -> None:
        logger.debug("%s: %s", self._unit.id, line)
