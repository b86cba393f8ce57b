"""The models of this node behind one `infer`.

1. An exact id beats an alias; an alias that two models claim is refused, naming both. A model that two backends have is the first
   one's, and the log says so.
2. A request id runs at most once at a time here; a second one with the same id is a Conflict.
3. After `drain` nothing new starts; what runs goes on to its end.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.beyond_text import refuse_begun
from mesh.errors import Conflict, MeshError, NotFound, TimedOut, Unavailable
from node.backends.usage import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesh.messages.inference import InferenceRequest
    from mesh.messages.link import ModelLoad
    from mesh.messages.record import ModelEntry
    from mesh.service import Emit
    from node.backends.base import Backend

logger = logging.getLogger(__name__)


class NodeService:
    """An `InferenceService` over this node's backends; see the head of this file."""

    def __init__(self, backends: Sequence[Backend], *, usages: dict[Backend, Usage] | None = None) -> None:
        """`usages`: those of another service over the same backends, which counts with this one."""
        self._backends = tuple(backends)
        self.draining = False
        self.usages = {} if usages is None else usages
        self._running: set[str] = set()
        self._shadowed: set[tuple[str, str]] = set()
        self._idle = trio.Event()

    @property
    def running(self) -> int:
        """Requests that have not ended."""
        return len(self._running)

    @property
    def backends(self) -> dict[str, Backend]:
        """By model id, which the first to have it keeps; one whose models are expected and unknown is there under its own."""
        found: dict[str, Backend] = {}
        for backend in self._backends:
            for entry in backend.entries() or ((backend.entry,) if backend.expected else ()):
                found.setdefault(entry.id, backend)
        return found

    def usage(self, backend: Backend) -> Usage:
        """What became of the requests of one backend."""
        return self.usages.setdefault(backend, Usage())

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call `listener` whenever a backend's entry changes; it must not raise."""
        for backend in self._backends:
            backend.changed = listener

    def entries(self) -> list[ModelEntry]:
        """What the record says of the models, in the order they were configured."""
        found: dict[str, ModelEntry] = {}
        for backend in self._backends:
            for entry in backend.entries():
                kept = found.setdefault(entry.id, entry)
                if kept is not entry:
                    self._shadow(kept, entry)
        return list(found.values())

    def _shadow(self, kept: ModelEntry, left_out: ModelEntry) -> None:
        """Say once that nobody reaches a model because another one has its name."""
        names = (kept.id, kept.backend + left_out.backend)
        if names in self._shadowed:
            return
        self._shadowed.add(names)
        same = kept.weights_digest and kept.weights_digest == left_out.weights_digest
        logger.warning(
            "two backends have a model %s, with %s weights: requests go to the first, %s; name the other's, %s, in its models",
            kept.id,
            "the same" if same else "other or unknown",
            kept.backend,
            left_out.backend,
        )

    def load(self) -> dict[str, ModelLoad]:
        """What the heartbeat says of them."""
        found: dict[str, ModelLoad] = {}
        for backend in self._backends:
            uptime = int(backend.status().uptime)
            for model, load in backend.loads().items():
                found.setdefault(model, msgspec.structs.replace(load, uptime=uptime))
        return found

    def gives_tokens(self, request: InferenceRequest) -> bool:
        """Whether the answer to it will name its tokens."""
        try:
            return self._backend_of(request.model).gives_tokens
        except MeshError:
            return False

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request on the backend that serves its model. Raises NotFound, Conflict, Unavailable, TimedOut."""
        if self.draining:
            raise Unavailable("this node is shutting down; send the request to another one", code="draining")
        backend = self._backend_of(request.model)
        if request.said is not None and backend.gives_tokens:
            refuse_begun(request, request.model)
        if request.request_id in self._running:
            raise Conflict(f"request {request.request_id} is running here already", code="request_in_progress")
        self._running.add(request.request_id)
        try:
            with self.usage(backend).request():
                await _in_time(backend, request, emit)
        finally:
            self._running.discard(request.request_id)
            if not self._running:
                self._idle.set()

    def drain(self) -> None:
        """Take nothing new from now on."""
        self.draining = True

    async def idle(self) -> None:
        """Wait until nothing runs. No time limit of its own."""
        while self._running:
            self._idle = trio.Event()
            await self._idle.wait()

    def _backend_of(self, model: str) -> Backend:
        for backend in self._backends:
            if any(entry.id == model for entry in backend.entries()):
                return backend
        found = {entry.id: backend for backend in self._backends for entry in backend.entries() if model in entry.aliases}
        if len(found) > 1:
            names = " and ".join(sorted(found))
            raise Conflict(f"{model} is an alias of {names}; ask for one of them", code="ambiguous_model", param="model")
        if not found:
            raise NotFound(
                f"this node does not serve {model[:200]!r}; it serves {', '.join(entry.id for entry in self.entries())}",
                code="model_not_found",
                param="model",
            )
        return next(iter(found.values()))


async def _in_time(backend: Backend, request: InferenceRequest, emit: Emit) -> None:
    if request.deadline_ms is None:
        await backend.infer(request, emit)
        return
    with trio.move_on_after(max(0, request.deadline_ms) / 1000) as scope:
        await backend.infer(request, emit)
    if scope.cancelled_caught:
        raise TimedOut(f"the request's deadline of {request.deadline_ms} ms ran out", code="deadline_exceeded")
