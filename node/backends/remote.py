"""A backend that somebody else runs: a server or a provider at a URL.

1. It is looked at every `check_interval`; at once, then with growing pauses, while it does not answer or a request found it dead.
   One that answers requests right now is not asked for anything else: some servers drop an answer for the next request.
2. A look that fails makes it `failed`, with the reason; the next one that succeeds makes it `ready`.
3. Nothing is started, restarted or stopped here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from mesh.errors import MeshError
from node.backends.base import BackendStatus
from node.backends.served import ServedBackend

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from mesh.messages.record import ModelState
    from mesh.service import Emit
    from node.backends.servers import Server
    from node.backends.unit import Unit

LOOK_SECONDS = 10.0
FIRST_PAUSE = 0.5
_SUSPICIOUS = frozenset(("service_unreachable", "service_lost", "service_denied", "model_not_found"))
"""Codes of errors after which it is looked at anew."""

logger = logging.getLogger(__name__)


class RemoteBackend(ServedBackend):
    """The models at one URL; see the head of this file."""

    def __init__(self, unit: Unit, server: Server) -> None:
        super().__init__(unit, server)
        self._state: ModelState = "loading"
        self._last_error: str | None = None
        self._since: float | None = None
        self._doubt = trio.Event()

    @property
    def state(self) -> ModelState:
        """As of the last look."""
        return self._state

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look at it until cancelled; `started()` after the first look."""
        pause = FIRST_PAUSE
        try:
            while True:
                await self._see()
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                pause = FIRST_PAUSE if self._state == "ready" else min(2 * pause, self._unit.check_interval)
                self._doubt = trio.Event()
                with trio.move_on_after(self._unit.check_interval if self._state == "ready" else pause):
                    await self._doubt.wait()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._server.aclose()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """As every served backend; an error that makes it suspicious has it looked at."""
        try:
            await super().infer(request, emit)
        except MeshError as error:
            if error.code in _SUSPICIOUS and self._state == "ready":
                self._doubt.set()
            raise

    def status(self) -> BackendStatus:
        """What P+1 tells of it."""
        return BackendStatus(
            state=self._state,
            running=self._state == "ready",
            uptime=0.0 if self._since is None else trio.current_time() - self._since,
            last_error=self._last_error,
        )

    async def _see(self) -> None:
        if self._state == "ready" and self.activity.in_flight and trio.current_time() - self.activity.heard < LOOK_SECONDS:
            return
        try:
            with trio.fail_after(LOOK_SECONDS):
                await (self.listen() if self._state == "ready" and self._unit.settings.upstream_model else self.look())
        except MeshError as error:
            self._enter("failed", error.message)
        except trio.TooSlowError:
            self._enter("failed", f"no answer within {LOOK_SECONDS:g} s")
        else:
            self._enter("ready", None)

    def _enter(self, state: ModelState, problem: str | None) -> None:
        if problem and problem != self._last_error:
            logger.warning("%s does not answer as it should: %s", self._unit.id, problem)
        if state != self._state:
            self._since = trio.current_time() if state == "ready" else None
        self._state, self._last_error = state, problem or self._last_error
        self.changed()
