"""A backend that is a command-line tool: started for every request, fed on stdin, its stdout is the answer.

1. One process for each request, in a session of its own under a guard (`node.process`); it ends with the request, whoever ends
   that: SIGTERM, `grace`, SIGKILL; and with the node.
2. It gets `request_timeout` seconds and may say `max_output` bytes; `max_requests` of them run at once, a few more may wait.
3. What it writes is passed on as it comes, cut between characters. Token limits and sampling are not its business.
4. Its exit code is the judge: not 0 is a failure. What it wrote to stderr is for the operator, not for the client.
"""

from __future__ import annotations

import codecs
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from mesh.beyond_text import refuse, refuse_begun
from mesh.errors import BackendFailed, Busy, MeshError, TimedOut
from mesh.messages.inference import Accepted
from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry
from mesh.openai.remote.pieces import Pieces
from mesh.service import room
from node.backends.argv import check_program, child_environment, program_of
from node.backends.base import Backend, BackendStatus, nobody_listens
from node.process import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit
    from node.backends.unit import Unit

PARALLEL = 4
WAITING = 16
"""Requests that may wait for each that may run."""

logger = logging.getLogger(__name__)


class CliBackend(Backend):
    """One tool under one or several names; see the head of this file."""

    gives_tokens = False

    def __init__(self, unit: Unit) -> None:
        """Raises Misconfigured when there is no such tool."""
        self.changed = nobody_listens
        self._settings = unit.settings
        self._argv = program_of(unit.settings)
        check_program(unit.settings, self._argv)
        self._parallel = unit.settings.max_requests or PARALLEL
        self._turns = trio.CapacityLimiter(self._parallel)
        self._waiting = self._steps = 0
        self._since: float | None = None
        self._last_error: str | None = None
        self._created = int(time.time())

    @property
    def entry(self) -> ModelEntry:  # type: ignore[override]  # read-only here: nothing of it changes
        """The first of its names."""
        return self.entries()[0]

    @property
    def load(self) -> ModelLoad:  # type: ignore[override]  # read-only here: it is counted, not stored
        """How many of it run."""
        return ModelLoad(
            "ready", running=int(self._turns.borrowed_tokens), waiting=self._waiting, slots=self._parallel, step=self._steps
        )

    def entries(self) -> Sequence[ModelEntry]:
        """One for each name."""
        settings = self._settings
        return [
            ModelEntry(
                id=name,
                aliases=list(settings.aliases),
                state="ready",
                context_length=settings.context_length,
                weight=settings.weight,
                backend="cli",
                created=self._created,
                capabilities=Capabilities(tasks=["chat", "completion"], batching=False, protocols=["cli"]),
            )
            for name in settings.models
        ]

    def loads(self) -> Mapping[str, ModelLoad]:
        """They share the tool."""
        return dict.fromkeys(self._settings.models, self.load)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """There is nothing to keep alive between requests."""
        self._since = trio.current_time()
        task_status.started()
        await trio.sleep_forever()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run the tool once. Raises Busy, BadRequest, TimedOut, and BackendFailed when it fails."""
        refuse(request, "a command-line tool")
        refuse_begun(request, "a command-line tool")
        await self._take_turn(request.model)
        try:
            await self._answer(request, emit)
        finally:
            self._turns.release()

    async def _take_turn(self, model: str) -> None:
        with suppress(trio.WouldBlock):
            self._turns.acquire_nowait()
            return
        if self._waiting >= WAITING * self._parallel:
            raise Busy(f"{self._waiting} requests wait for {model} on this node; try again", retry_after=5)
        self._waiting += 1
        try:
            await self._turns.acquire()
        finally:
            self._waiting -= 1

    def status(self) -> BackendStatus:
        """What P+1 tells of it: it works as long as the node does; the last failure of a request is told."""
        uptime = 0.0 if self._since is None else trio.current_time() - self._since
        return BackendStatus(state="ready", running=self._since is not None, uptime=uptime, last_error=self._last_error)

    async def _answer(self, request: InferenceRequest, emit: Emit) -> None:
        limit = self._settings.request_timeout
        emit(Accepted(running=int(self._turns.borrowed_tokens), waiting=self._waiting))
        call = _Call(self._settings.max_output, Pieces(request, emit), emit)
        with trio.move_on_after(limit) as scope:
            await self._run(call, prompt_of(request))
        if scope.cancelled_caught:
            raise TimedOut(f"{request.model} did not end its answer within {limit:g} s", code="engine_timeout")
        self._steps += 1
        try:
            call.end()
        except MeshError as error:
            self._last_error = f"{error.message} ({call.complaint})"
            logger.warning("%s: %s", request.model, self._last_error)
            raise

    async def _run(self, call: _Call, prompt: bytes) -> None:
        child = ChildProcess(
            self._argv,
            environment=child_environment(self._settings),
            directory=self._settings.work_dir,
            grace=self._settings.grace,
            feed=prompt,
            on_output=call.listen,
        )
        try:
            with call.scope:
                await child.run()
        except OSError as error:
            raise BackendFailed(f"the tool cannot be started: {error.strerror}", code="tool_failed") from error
        finally:
            call.returncode = child.returncode
            call.complaint = child.lines[-1][:300] if child.lines else "nothing on stderr"


class _Call:
    """One run of the tool. `scope` ends it; `complaint` is the last line of its stderr."""

    def __init__(self, limit: int, pieces: Pieces, emit: Emit) -> None:
        self.scope = trio.CancelScope()
        self.returncode: int | None = None
        self.complaint = ""
        self._limit = limit
        self._pieces = pieces
        self._emit = emit
        self._said = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    async def listen(self, data: bytes) -> None:
        """Pass on what it says, no faster than the reader takes it; too much of it ends the run."""
        self._said += len(data)
        if self._said > self._limit:
            self.scope.cancel()
            return
        self._pieces.say(self._decoder.decode(data))
        await room(self._emit)

    def end(self) -> None:
        """Judge it: emit `Done`, or raise BackendFailed."""
        if self._said > self._limit:
            raise BackendFailed(f"the tool said more than {self._limit} bytes, its limit", code="reply_too_large")
        if self.returncode != 0:
            raise BackendFailed(f"the tool ended with code {self.returncode}", code="tool_failed")
        self._pieces.say(self._decoder.decode(b"", final=True))
        self._pieces.done("stop")


def prompt_of(request: InferenceRequest) -> bytes:
    """What the tool reads: a prompt or a single message as it is; of a conversation each message under a line that says whose."""
    if request.task != "chat":
        return str(request.prompt or "").encode(errors="replace")
    messages = request.messages or []
    if len(messages) == 1:
        return str(messages[0].get("content") or "").encode(errors="replace")
    parts = [f"{str(message['role']).capitalize()}:\n{message.get('content') or ''}\n" for message in messages]
    return "\n".join(parts).encode(errors="replace")
