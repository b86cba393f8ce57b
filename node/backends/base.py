"""The interface of a backend: one model of this node, whatever runs it, or the models that one server has.

1. `run` owns everything that the backend starts: when it has returned or was cancelled, nothing of it is left.
2. `entry`, `load` and `status` tell the truth of this moment; `ready` means that the model answers, not that a process exists.
3. `changed` is called after `entry` changed. It is synchronous and never raises.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mesh.messages.inference import InferenceRequest
    from mesh.messages.link import ModelLoad
    from mesh.messages.record import ModelEntry, ModelState
    from mesh.messages.worker import Alive, Ready
    from mesh.service import Emit


@dataclass(frozen=True, kw_only=True)
class BackendStatus:
    """What the supervisor's HTTP port tells of one backend. `uptime` in seconds since the model last became ready."""

    state: ModelState
    running: bool
    pid: int | None = None
    restarts: int = 0
    uptime: float = 0.0
    last_error: str | None = None
    refused: bool = False
    """True when trying again cannot help: the model itself cannot be served."""
    engine: Alive | None = None
    """What the built-in engine last told of itself; None for other backends, and before it told anything."""
    note: str | None = None
    """What else there is to say of its state, for people."""
    worker: Ready | None = None
    """What the built-in engine's worker said of itself when the model was ready; None for other backends."""
    heard: float | None = None
    """Seconds since anything was heard of it."""


class Backend(ABC):
    """One model of this node, or the models of one server; see the head of this file."""

    entry: ModelEntry
    """What the node's record says of the model, state included."""
    load: ModelLoad
    changed: Callable[[], None]
    gives_tokens: bool = True
    """Whether its answers name their tokens, so that others can go on behind them, and readers come back to them."""

    expected: bool = True
    """Whether it counts as loading while it has no models; one that is not expected to have any does not count at all then."""

    def entries(self) -> Sequence[ModelEntry]:
        """All its models: for most backends the only one."""
        return (self.entry,)

    def loads(self) -> Mapping[str, ModelLoad]:
        """How busy each of them is, by id."""
        return {self.entry.id: self.load}

    @abstractmethod
    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the model alive until cancelled; `started()` when it serves, sleeps or has failed."""

    @abstractmethod
    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request to its end, as `mesh.service` rules. Never waits for a model that is not ready: raises Unavailable."""

    @abstractmethod
    def status(self) -> BackendStatus:
        """What P+1 tells of it. Never blocks."""


def nobody_listens() -> None:
    """The `changed` of a backend that nobody has taken over yet."""
