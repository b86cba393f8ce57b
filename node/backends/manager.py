"""Backends by name, for Python programs: register them, choose one for a task, see how they do.

1. What is registered is anything with `async infer(request, emit)`; ours (`node.backends.base`) also tell their models and state.
2. A choice is made among those that can be asked: the first preferred type that has any, healthy before degraded ones, then by
   strategy. Each pair of task and model takes its own turns.
3. Requests count where they are made through what `select_backend_for_task` returned; nobody else's counters are shown.
4. A check, where the instance has one, is asked at most `CHECK_LIMIT` seconds, all at the same time.
"""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import trio

from mesh.errors import Misconfigured, NotFound
from mesh.health import USABLE, Level, level
from mesh.status import BACKEND_TYPES, BackendType, Counted, Json, metrics, report, task_names
from node.backends.base import Backend
from node.backends.usage import Usage
from node.status import has_died

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit, InferenceService

Strategy = Literal["round_robin", "least_loaded", "best_performance"]
CHECK_INTERVAL = 60.0
CHECK_LIMIT = 5.0
MAX_BACKENDS = 1_000
MAX_TURNS = 10_000
"""Pairs of task and model whose turns are remembered."""


@dataclass(frozen=True, kw_only=True)
class BackendCapabilities:
    """What a backend can do. Tasks by their names at OpenAI's routes or Hugging Face's: `chat`, `text-generation`, ..."""

    supported_tasks: Sequence[str] = ("chat", "completion")
    supports_streaming: bool = True
    supports_batching: bool = False
    hardware_types: Sequence[str] = ()
    protocols: Sequence[str] = ()


@dataclass(eq=False)
class RegisteredBackend:
    """One of them. Ask it by `infer`: then it counts."""

    id: str
    type: BackendType
    name: str
    instance: InferenceService
    given: BackendCapabilities | None
    endpoint: str
    models: Sequence[str] = ()
    """What it serves; empty = whatever it is asked for. One of ours says it itself."""
    answers: bool | None = None
    """What the last check said; None where there was none."""
    usage: Usage = field(default_factory=Usage)
    registered: float = field(default_factory=time.monotonic)

    @property
    def capabilities(self) -> BackendCapabilities:
        """What it was registered with; else what it tells itself, which may change."""
        return self.given or _capabilities_of(self.instance)

    @property
    def status(self) -> Level:
        """One of the six levels of `mesh.health`."""
        if isinstance(self.instance, Backend):
            return level([self.instance.status().state], died=has_died(self.instance), failing=self.usage.failing)
        return level(["ready"], reachable=self.answers is not False, failing=self.usage.failing)

    @property
    def queue(self) -> int:
        """Requests that run or wait, as far as is known here."""
        load = self.instance.load if isinstance(self.instance, Backend) else None
        return max(self.usage.active, load.running + load.waiting if load else 0)

    @property
    def latency(self) -> float | None:
        """Mean seconds of its successful requests; None before the first."""
        return self.usage.latency / self.usage.successful if self.usage.successful else None

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request on it, and count it. Raises what the instance raises."""
        with self.usage.request():
            await self.instance.infer(request, emit)

    def serves(self, task: str, model: str | None) -> bool:
        """Whether it can be asked for this at all, however it does."""
        tasks = set(task_names(self.capabilities.supported_tasks))
        named = self._named()
        return tasks.issuperset(task_names([task])) and (model is None or not named or model in named)

    def describe(self) -> Json:
        """Its part of the report."""
        return {
            "id": self.id,
            "name": self.name,
            "type": self.type,
            "status": self.status,
            "endpoint": self.endpoint,
            "tasks": task_names(self.capabilities.supported_tasks),
            "protocols": list(self.capabilities.protocols),
            "capabilities": {
                "supports_streaming": self.capabilities.supports_streaming,
                "supports_batching": self.capabilities.supports_batching,
                "hardware_types": list(self.capabilities.hardware_types),
            },
            "models": self._named(),
            "metrics": metrics(
                Counted(
                    requests=self.usage.requests,
                    successful=self.usage.successful,
                    failed=self.usage.failed,
                    latency=self.usage.latency,
                    queue=max(0, self.queue - self.usage.active),
                    active=self.usage.active,
                    models_loaded=self._loaded(),
                    uptime=self._uptime(),
                )
            ),
        }

    def _named(self) -> list[str]:
        if isinstance(self.instance, Backend):
            return [name for entry in self.instance.entries() for name in (entry.id, *entry.aliases)]
        return list(self.models)

    def _loaded(self) -> int:
        if isinstance(self.instance, Backend):
            return sum(entry.state == "ready" for entry in self.instance.entries())
        return len(self.models) if self.answers is not False else 0

    def _uptime(self) -> float | None:
        if isinstance(self.instance, Backend):
            return round(self.instance.status().uptime, 3) or None
        return round(time.monotonic() - self.registered, 3)


class BackendManager:
    """All of them. `run` makes the periodic checks."""

    def __init__(self, *, strategy: Strategy = "round_robin") -> None:
        self.strategy: Strategy = strategy
        self.backends: dict[str, RegisteredBackend] = {}
        self._turns: Counter[tuple[str, str | None]] = Counter()

    def register_backend(
        self,
        backend_id: str,
        backend_type: BackendType,
        name: str,
        instance: InferenceService,
        capabilities: BackendCapabilities | None = None,
        endpoint: str = "",
        *,
        models: Sequence[str] = (),
    ) -> RegisteredBackend:
        """Add one; an id that is there already is replaced. Raises Misconfigured."""
        if backend_type not in BACKEND_TYPES:
            raise Misconfigured(f"{backend_type!r} is not a backend type; give one of {', '.join(BACKEND_TYPES)}")
        if len(self.backends) >= MAX_BACKENDS and backend_id not in self.backends:
            raise Misconfigured(f"{MAX_BACKENDS} backends are registered; take one out by unregister_backend first")
        backend = RegisteredBackend(backend_id, backend_type, name, instance, capabilities, endpoint, models)
        self.backends[backend_id] = backend
        return backend

    def unregister_backend(self, backend_id: str) -> None:
        """Take one out; what runs on it goes on. Raises NotFound."""
        if self.backends.pop(backend_id, None) is None:
            raise NotFound(f"no backend {backend_id!r} is registered", code="backend_not_found")

    def select_backend_for_task(
        self, task: str, model: str | None = None, preferred_types: Sequence[BackendType] = ()
    ) -> RegisteredBackend | None:
        """Whom to ask for it now; None when nobody can be asked. Preferred types are tried in their order, then all others."""
        usable = [backend for backend in self.backends.values() if backend.serves(task, model) and backend.status in USABLE]
        for preferred in preferred_types:
            if of_type := [backend for backend in usable if backend.type == preferred]:
                return self._choose(of_type, task, model)
        return self._choose(usable, task, model) if usable else None

    def get_backend_status_report(self) -> dict[str, Any]:
        """The same report as `GET /status` of a gateway, over these backends."""
        usages = [backend.usage for backend in self.backends.values()]
        return report(
            [backend.describe() for backend in self.backends.values()],
            requests=sum(usage.requests for usage in usages),
            successful=sum(usage.successful for usage in usages),
            failed=sum(usage.failed for usage in usages),
        )

    async def run(self, interval: float = CHECK_INTERVAL) -> None:
        """Ask every instance that has an `async check() -> bool` every `interval` seconds. Runs until cancelled."""
        while True:
            await self.check()
            await trio.sleep(interval)

    async def check(self) -> None:
        """Ask them once, now."""
        async with trio.open_nursery() as nursery:
            for backend in list(self.backends.values()):
                nursery.start_soon(_check, backend)

    def _choose(self, usable: Sequence[RegisteredBackend], task: str, model: str | None) -> RegisteredBackend:
        healthy = [backend for backend in usable if backend.status == "healthy"] or usable
        if len(self._turns) >= MAX_TURNS:
            self._turns.clear()
        turn = self._turns[task, model]
        self._turns[task, model] += 1
        # In turns also among equals: whoever is first in the dictionary must not get everything.
        in_turn = [*healthy[turn % len(healthy) :], *healthy[: turn % len(healthy)]]
        match self.strategy:
            case "least_loaded":
                return min(in_turn, key=lambda backend: backend.queue)
            case "best_performance":
                # One that was never tried comes first: nobody knows how good it is.
                return min(in_turn, key=lambda backend: backend.latency or 0.0)
            case _:
                return in_turn[0]


async def _check(backend: RegisteredBackend) -> None:
    check = getattr(backend.instance, "check", None)
    if check is None:
        return
    answers = False
    with trio.move_on_after(CHECK_LIMIT), suppress(Exception):  # whatever it raises, it does not answer
        answers = bool(await check())
    backend.answers = answers


def _capabilities_of(instance: InferenceService) -> BackendCapabilities:
    if not isinstance(instance, Backend):
        return BackendCapabilities()
    can = instance.entry.capabilities
    return BackendCapabilities(
        supported_tasks=can.tasks or [instance.entry.task],
        supports_streaming=can.streaming,
        supports_batching=can.batching,
        hardware_types=can.hardware_types,
        protocols=can.protocols,
    )
