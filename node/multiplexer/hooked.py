"""A model whose life belongs to three scripts, and that answers OpenAI HTTP at some address while it is awake."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from mesh.beyond_text import refuse_begun
from mesh.errors import BadRequest, Unavailable
from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry
from node.backends.base import Backend, BackendStatus, nobody_listens
from node.multiplexer.shell import Hook, read_away
from node.multiplexer.switchable import prove_awake

if TYPE_CHECKING:
    from trio.abc import ReceiveStream

    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit

SLOTS = 16
"""Requests that it is taken to work on at once: its server does not tell."""


class Server(Protocol):
    """What answers for it while it is awake."""

    tasks: list[str]

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request. Raises MeshError."""

    async def aclose(self) -> None:
        """Close all connections."""


@dataclass(frozen=True, kw_only=True)
class HookSettings:
    """One model and its hooks. Time limits in seconds."""

    model: str
    wake: str
    sleep: str
    alive: str
    wake_timeout_secs: float = 600.0
    sleep_timeout_secs: float = 120.0
    alive_timeout_secs: float = 10.0
    port: int = 0
    """Of this machine, where its server answers; 0: whoever made the settings knows another address."""
    aliases: tuple[str, ...] = ()
    upstream_model: str = ""
    """What its server calls it, where that is another name."""
    context_length: int = 0
    weight: float = 1.0
    memory: int = 0
    """Bytes of the accelerator that it takes while it is awake; 0 = unknown."""


class HookedModel(Backend):
    """A `Switchable` that runs hooks."""

    gives_tokens = False

    def __init__(self, settings: HookSettings, server: Server) -> None:
        self.entry = ModelEntry(
            id=settings.model,
            aliases=list(settings.aliases),
            state="ready",
            context_length=settings.context_length,
            weight=settings.weight,
            backend="hooks",
            created=int(time.time()),
            capabilities=Capabilities(tasks=list(server.tasks), protocols=["openai"]),
        )
        self.changed = nobody_listens
        self.memory = settings.memory
        self._settings = settings
        self._server = server
        self._running = 0
        self._nursery: trio.Nursery | None = None

    @property
    def load(self) -> ModelLoad:  # type: ignore[override]  # read-only here: it is counted, not stored
        """As many requests as were sent and have not ended."""
        return ModelLoad("ready", running=min(self._running, SLOTS), waiting=max(0, self._running - SLOTS), slots=SLOTS)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read what its processes print, until cancelled. They themselves stay as they are: they belong to the hooks."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True), trio.move_on_after(1):
                await self._server.aclose()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request on its server. Raises MeshError."""
        refuse_begun(request, request.model)
        if request.task not in self._server.tasks:
            can = " and ".join(self._server.tasks)
            raise BadRequest(f"{self.entry.id} can do {can} only", code="unsupported_task", param="model")
        upstream = self._settings.upstream_model or self._settings.model
        self._running += 1
        try:
            await self._server.infer(msgspec.structs.replace(request, model=upstream), emit)
        finally:
            self._running -= 1

    async def wake(self) -> None:
        """The hook `wake`, then a generated token, or a vector where it does nothing else."""
        await self._hook("wake", self._settings.wake, self._settings.wake_timeout_secs)
        await prove_awake(self.entry.id, self.infer, tasks=self._server.tasks)

    async def sleep(self) -> None:
        """The hook `sleep`."""
        await self._hook("sleep", self._settings.sleep, self._settings.sleep_timeout_secs)

    async def alive(self) -> bool:
        """The hook `alive`; one that hangs is a no."""
        try:
            await self._hook("alive", self._settings.alive, self._settings.alive_timeout_secs)
        except Unavailable:
            return False
        return True

    def status(self) -> BackendStatus:
        """What P+1 tells of it."""
        return BackendStatus(state="ready", running=True)

    async def _hook(self, name: str, script: str, limit: float) -> None:
        await Hook(name, self.entry.id, script, limit=limit, strays=self._adopt).run()

    def _adopt(self, output: ReceiveStream) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(read_away, output)
