"""A model of a multiplexer as the rest of the node sees it: a backend like any other, asleep while another one has its turn.

1. `ready` is only what is awake. One that waits for its turn, or is being woken, is `asleep`: gateways send it requests, which
   wait here, at the cost that `wake_seconds` tells.
2. One that failed to wake is `failed` for as long as requests for it are refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from node.backends.base import Backend, BackendStatus, nobody_listens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mesh.messages.inference import InferenceRequest
    from mesh.messages.link import ModelLoad
    from mesh.messages.record import ModelEntry, ModelState
    from mesh.service import Emit
    from node.multiplexer.multiplexer import Multiplexer


class Presented(Backend):
    """See the head of this file."""

    def __init__(self, multiplexer: Multiplexer, model: str) -> None:
        self.multiplexer = multiplexer
        self.changed = nobody_listens
        self._member = multiplexer.members[model]
        self._backend = self._member.backend
        self._backend.changed = self._told
        self.gives_tokens = self._backend.gives_tokens

    @property
    def entry(self) -> ModelEntry:  # type: ignore[override]  # read-only here: it is put together, not stored
        """The model's own entry in the state that it has here."""
        return msgspec.structs.replace(self._backend.entry, state=self._state, wake_seconds=self._wake_seconds)

    @property
    def load(self) -> ModelLoad:  # type: ignore[override]
        """Those who wait for its turn count as waiting."""
        load = self._backend.load
        return msgspec.structs.replace(load, state=self._state, waiting=load.waiting + len(self._member.line))

    @property
    def adapters(self) -> Mapping[str, str]:
        """Digests of the adapters that the model serves beside itself, by name."""
        return getattr(self._backend, "adapters", {})

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the multiplexer, all its models together, unless another one of them does."""
        await self.multiplexer.run(task_status=task_status)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request when it is the model's turn."""
        await self.multiplexer.infer(self._member.model, request, emit)

    def status(self) -> BackendStatus:
        """What P+1 tells of it."""
        status = self._backend.status() if self._is_active else BackendStatus(state="asleep", running=False)
        error = self._member.last_error or status.last_error
        return BackendStatus(
            state=self._state,
            running=status.running and self._is_active,
            pid=status.pid,
            restarts=status.restarts,
            uptime=self._member.tenure.lasted if self._member.tenure else 0.0,
            last_error=error,
            engine=status.engine,
            heard=status.heard,
        )

    @property
    def _is_active(self) -> bool:
        return self._member.tenure is not None

    @property
    def _state(self) -> ModelState:
        if self._member.line.is_open:
            return self._backend.entry.state
        return "failed" if self._member.barred else "asleep"

    @property
    def _wake_seconds(self) -> float:
        return round(max(0.1, self.multiplexer.wake_cost(self._member.model)), 1)

    def _told(self) -> None:
        self.changed()


def present(multiplexer: Multiplexer) -> Sequence[Presented]:
    """All models of a multiplexer, as backends."""
    backends = [Presented(multiplexer, model) for model in multiplexer.members]

    def changed() -> None:
        for backend in backends:
            backend.changed()

    multiplexer.changed = changed
    return backends
