"""The parent's side of the worker process: the built-in engine, one process per model.

1. The node never imports torch: what it must know comes in the worker's `Ready`.
2. The worker's death is seen as the end of its socket: in that same moment all its requests fail and the state changes.
3. The worker lives exactly as long as its socket: closing it, or dying, ends the worker without any signal.
4. A request for a model that is not ready is refused at once; waiting is the gateway's business, who has other nodes.
5. A worker that is there but does not get on (`node.liveness`) is killed and replaced, like one that died.
6. Asleep means unloaded: the worker is gone, and with it all the memory that it had. At `sleep_level` 1 the worker stays, with
   the weights in the host's memory (`node.backends.doze`); one that dies in that sleep is not restarted before it is woken.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import BackendFailed, Busy, Misconfigured, Unavailable
from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry
from mesh.messages.worker import Alive, Dozed, FromWorker, Loading, Ready, Refusal, Step
from node.activity import Activity
from node.backends.base import Backend, BackendStatus, nobody_listens
from node.backends.conversation import Conversation, ProtocolBroken
from node.backends.doze import Dozing
from node.liveness import Liveness, Patience
from node.process import ChildProcess
from node.supervisor import Refused, RestartPolicy, Supervisor

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mesh.messages.inference import InferenceRequest
    from mesh.messages.record import ModelState
    from mesh.messages.worker import EngineLoad
    from mesh.service import Emit

_LAST_WORDS = 1.0
"""Seconds that a worker may take to be gone after its socket ended, before it is helped."""
_GRACE = 2.0
"""Seconds between SIGTERM and SIGKILL: a worker has nothing to save."""
_TOLD_LINES = 8
"""Lines of a dead worker's output that go into the node's log."""
_LOOK_EVERY = 0.1
"""Seconds. A dead process's socket ends only when the kernel has cleared its memory, on a busy machine half a second later."""
_PACKAGES = ("torch", "transformers", "safetensors", "tokenizers", "numpy", "jinja2")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TorchSettings:
    """One model for the built-in engine. `slots`, `context` and `cache_mib` None leave the choice to the worker."""

    model: str
    path: Path
    aliases: tuple[str, ...] = ()
    device: str = "auto"
    dtype: str = "auto"
    weights: str = "auto"
    threads: int | None = None
    """On a CPU; None lets the worker try."""
    slots: int | None = None
    context: int | None = None
    cache_mib: int | None = None
    sleep_level: int = 2
    """1: asleep, the worker stays and the weights are in the host's memory; 2: it is gone."""
    max_waiting: int = 256
    """Requests beyond the slots; one more is refused with Busy."""
    weight: float = 1.0
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """LoRA adapters beside the model, by the model id that they are served as; see `node.backends.adapter`."""
    restarts: RestartPolicy = field(default_factory=RestartPolicy)
    patience: Patience = field(default_factory=Patience)
    environment: Mapping[str, str] = field(default_factory=dict)
    """What the worker finds in its environment besides ours: `CUDA_VISIBLE_DEVICES`, for one."""
    program: Sequence[str] = (sys.executable, "-m", "node.worker")
    """What is started, before its flags."""

    def argv(self, socket_fd: int) -> list[str]:
        """The worker's command line."""
        argv = [*self.program, "--model", str(self.path), "--device", self.device, "--dtype", self.dtype]
        argv += ["--socket-fd", str(socket_fd)]
        if self.weights != "auto":
            argv += ["--weights", self.weights]
        if self.threads is not None:
            argv += ["--threads", str(self.threads)]
        if self.slots is not None:
            argv += ["--slots", str(self.slots)]
        if self.context is not None:
            argv += ["--context", str(self.context)]
        if self.cache_mib is not None:
            argv += ["--cache-mib", str(self.cache_mib)]
        for name, path in self.adapters.items():
            argv += ["--adapter", f"{name}={path}"]
        return argv


def require_worker_packages() -> None:
    """Raise Misconfigured when what the worker imports is not installed. Imports none of it."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise Misconfigured(f"running a model needs {', '.join(missing)}; install them with: pip install 'infermesh[worker]'")


class TorchBackend(Backend):
    """One model, run by one worker process that is restarted when it dies."""

    def __init__(self, settings: TorchSettings, *, on_loading: Callable[[str, Loading], None] | None = None) -> None:
        """`on_loading` hears the progress of every load, for a progress bar."""
        self.entry = ModelEntry(
            id=settings.model,
            aliases=list(settings.aliases),
            weight=settings.weight,
            backend="torch",
            created=int(time.time()),
        )
        self.load = ModelLoad("loading")
        self.changed = nobody_listens
        self._settings = settings
        self._on_loading = on_loading
        self._supervisor = Supervisor(settings.model, policy=settings.restarts, changed=self._state_changed)
        self._conversation: Conversation | None = None
        self._child: ChildProcess | None = None
        self._dozing = Dozing()
        self.memory = 0
        """Bytes of the accelerator that it took when it was last awake; 0 before it was measured."""
        self.adapters: Mapping[str, str] = {}
        """Digests of the adapters that the worker serves, by name."""
        self._refusal: str | None = None
        self._pulse: Alive | None = None
        self._ready: Ready | None = None
        self._heard = -math.inf
        self._began = math.inf
        self._liveness = Liveness(settings.patience, 0.0)

    @property
    def pulse(self) -> tuple[Alive, float] | None:
        """What this life of the worker last told of its engine, and how many seconds ago it told anything at all."""
        return None if self._pulse is None else (self._pulse, trio.current_time() - self._heard)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the worker alive until cancelled; `started()` when it answers, was refused or is in a crash loop."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._supervisor.run, self._live)
            await self._supervisor.settled.wait()
            task_status.started()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request in the worker. Raises Unavailable, Busy, BackendFailed, and what the engine raises."""
        conversation = self._conversation
        if self.entry.state != "ready" or conversation is None:
            raise self._not_ready()
        if conversation.in_flight >= self.load.slots + self._settings.max_waiting:
            raise Busy(f"{conversation.in_flight} requests are queued for {self.entry.id} on this node; try again", retry_after=1)
        await conversation.infer(request, emit)

    async def sleep(self) -> None:
        """Give the accelerator's memory back, and end what runs; at once when it is asleep already."""
        if self._settings.sleep_level == 1 and self._supervisor.state == "ready" and await self._doze():
            return
        await self._supervisor.sleep()

    async def _doze(self) -> bool:
        conversation = self._conversation
        if conversation is None:
            return False
        self._dozing.fall_asleep()
        self._state_changed()
        answer = await self._dozing.order(conversation, asleep=True)
        if answer is None or answer.error or not answer.asleep:
            return False
        logger.info("%s is asleep: %s", self.entry.id, answer.note)
        return True

    async def wake(self) -> None:
        """Be ready again; returns when the model has produced a token. `run` must be running. Raises BackendFailed."""
        conversation = self._conversation
        if self._dozing.light and conversation is not None:
            answer = await self._dozing.order(conversation, asleep=False)
            if answer is not None and not answer.asleep:
                self.memory = answer.memory or self.memory
                self._state_changed()
                return
            if answer is not None:
                raise BackendFailed(f"{self.entry.id} could not be woken on this node: {answer.error}", code="wake_failed")
        if self._dozing.light:
            await self._supervisor.sleep()
        if not await self._supervisor.wake():
            raise BackendFailed(
                f"{self.entry.id} could not be woken on this node; its operator finds the reason in /health", code="wake_failed"
            )

    def status(self) -> BackendStatus:
        """What P+1 tells of it."""
        supervisor = self._supervisor
        return BackendStatus(
            state=self._state,
            running=self._state == "ready",
            note=self._dozing.note,
            pid=self._child.pid if self._child is not None else None,
            restarts=supervisor.restarts,
            uptime=supervisor.uptime,
            last_error=supervisor.last_error,
            refused=supervisor.refused,
            engine=self._pulse,
            worker=self._ready if supervisor.state == "ready" else None,
            heard=trio.current_time() - self._heard if self._pulse is not None else None,
        )

    def _not_ready(self) -> Unavailable:
        model = self.entry.id
        match self.entry.state:
            case "failed":
                return Unavailable(
                    f"{model} has failed on this node; its operator finds the reason in /health", code="model_failed"
                )
            case "asleep":
                return Unavailable(f"{model} is asleep on this node; it has to be woken", code="model_asleep", retry_after=2)
            case _:
                return Unavailable(f"{model} is still loading on this node; try again", code="model_loading", retry_after=2)

    async def _live(self) -> str:
        """One life of the worker; returns why it died."""
        ours, theirs = socket.socketpair()
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        child = ChildProcess(
            self._settings.argv(theirs.fileno()),
            pass_fds=[theirs.fileno()],
            environment={**os.environ, **self._settings.environment},
            grace=_GRACE,
            on_line=self._log_line,
        )
        self._refusal = None
        self._began = trio.current_time()
        self._liveness = Liveness(self._settings.patience, self._began)
        problems: list[str] = []
        watching = trio.CancelScope()
        try:
            async with trio.open_nursery() as nursery:
                with theirs:
                    await nursery.start(self._own, child, nursery.cancel_scope, watching, problems)
                self._child = child
                nursery.start_soon(self._converse, stream, problems, nursery.cancel_scope)
                with watching:
                    problems.append(await self._hanging(child))
                    child.hurry()  # what hangs does not hear SIGTERM
                    nursery.cancel_scope.cancel()
        finally:
            self._child = None
            stream.socket.close()
        if self._refusal is not None:
            raise Refused(self._refusal)
        for line in list(child.lines)[-_TOLD_LINES:]:
            logger.warning("%s: its worker's last words: %s", self.entry.id, line)
        return problems[0] if problems else child.cause

    async def _hanging(self, child: ChildProcess) -> str:
        """Watch the worker until it does not get on; what is wrong with it."""
        activity = Activity(child.pid or 0)
        problem = None
        while problem is None:
            await trio.sleep(_LOOK_EVERY)  # what does not happen sets no event
            if activity.dying():
                self._supervisor.lost()
            problem = self._liveness.look(trio.current_time(), activity.seen)
        return problem

    async def _own(
        self,
        child: ChildProcess,
        life: trio.CancelScope,
        watching: trio.CancelScope,
        problems: list[str],
        *,
        task_status: trio.TaskStatus[None],
    ) -> None:
        """Be there until the process is gone; then its socket has to end too, whoever else may hold it."""
        try:
            await child.run(task_status=task_status)
        except OSError as error:
            problems.append(f"the worker could not be started: {error}")
            task_status.started()
        watching.cancel()
        life.deadline = min(life.deadline, trio.current_time() + _LAST_WORDS)

    async def _converse(self, stream: trio.SocketStream, problems: list[str], life: trio.CancelScope) -> None:
        """Speak with the worker until it is gone, then see to it that the process goes as well."""
        conversation = Conversation(stream, self._hear)
        self._conversation = conversation
        patience = _LAST_WORDS
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(conversation.write)
                try:
                    await conversation.read()
                except ProtocolBroken as error:
                    problems.append(str(error))
                    patience = 0.0
                nursery.cancel_scope.cancel()
        finally:
            self._conversation = self._pulse = None
            if self._dozing.light:
                self._supervisor.rest()
            self._dozing.lost()
            conversation.lose(f"the worker of {self.entry.id} died; the request can be sent again")
            self._supervisor.lost()
            stream.socket.close()
        life.deadline = min(life.deadline, trio.current_time() + patience)

    def _hear(self, message: FromWorker) -> None:
        self._heard = trio.current_time()
        self._liveness.hear(message, self._heard)
        match message:
            case Alive():
                self._pulse = message
            case Step(load=load) if self.entry.state == "ready":  # what a dead worker still had to say is no load any more
                self.load = _load_of(load)
            case Loading():
                if self._on_loading is not None:
                    self._on_loading(self.entry.id, message)
            case Ready():
                self._become_ready(message)
            case Dozed():
                self._dozing.hear(message)
            case Refusal(message=reason):
                self._refusal = reason

    def _become_ready(self, ready: Ready) -> None:
        self.entry = msgspec.structs.replace(
            self.entry,
            context_length=ready.context_length,
            task=ready.tasks[0],
            weights_digest=ready.weights_digest,
            numerics=ready.numerics,
            wake_seconds=round(trio.current_time() - self._began, 3),
            capabilities=Capabilities(
                tasks=ready.tasks,
                batching=ready.batching,
                hardware_types=[ready.device.partition(":")[0]],
                protocols=["infermesh"],
                max_batch=ready.slots if ready.batching else 1,
            ),
        )
        self._ready = ready
        self.adapters = ready.adapters
        self.memory = ready.memory
        self.load = ModelLoad("ready", slots=ready.slots)
        self._supervisor.ready()

    @property
    def _state(self) -> ModelState:
        return "asleep" if self._dozing.light else self._supervisor.state

    def _state_changed(self) -> None:
        if self._supervisor.state == "asleep":
            self._dozing.over()
        state = self._state
        self.entry = msgspec.structs.replace(self.entry, state=state)
        if state != "ready":
            self.load = ModelLoad(state)
        self.changed()

    def _log_line(self, line: str) -> None:
        logger.debug("%s: %s", self.entry.id, line)


def _load_of(load: EngineLoad) -> ModelLoad:
    return ModelLoad(
        "ready",
        running=load.running,
        waiting=load.waiting,
        slots=load.slots,
        prefill_rate=load.prefill_rate,
        decode_rate=load.decode_rate,
        step=load.step,
    )
