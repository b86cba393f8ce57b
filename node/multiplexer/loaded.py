"""A backend that can load and unload its model, as what shares an accelerator: asleep from the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesh.messages.inference import InferenceRequest
    from mesh.messages.link import ModelLoad
    from mesh.messages.record import ModelEntry
    from mesh.service import Emit
    from node.backends.base import BackendStatus


_BEGUN = 0.05
"""Seconds after which a backend that was started can be put to sleep."""


class Loadable(Protocol):
    """A `Backend` with two more methods."""

    entry: ModelEntry
    load: ModelLoad
    changed: Callable[[], None]
    gives_tokens: bool

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As a backend's."""

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """As a backend's."""

    def status(self) -> BackendStatus:
        """As a backend's."""

    async def wake(self) -> None:
        """Returns when the model has produced a token. Raises MeshError."""

    async def sleep(self) -> None:
        """Returns when it is unloaded."""


class Loaded:
    """A `Switchable` around such a backend."""

    def __init__(self, backend: Loadable, *, memory: int = 0) -> None:
        """`memory` is what it is said to take, in bytes; 0 leaves it to what the backend measured."""
        self._backend = backend
        self._memory = memory

    @property
    def memory(self) -> int:
        """As stated, else as the backend measured when it last loaded."""
        measured: int = getattr(self._backend, "memory", 0)
        return self._memory or measured

    @property
    def gives_tokens(self) -> bool:
        """The backend's."""
        return self._backend.gives_tokens

    @property
    def entry(self) -> ModelEntry:
        """The backend's."""
        return self._backend.entry

    @property
    def load(self) -> ModelLoad:
        """The backend's."""
        return self._backend.load

    @property
    def adapters(self) -> Mapping[str, str]:
        """The backend's, where it has any."""
        return getattr(self._backend, "adapters", {})

    @property
    def changed(self) -> Callable[[], None]:
        """Called when the backend's entry changed."""
        return self._backend.changed

    @changed.setter
    def changed(self, listener: Callable[[], None]) -> None:
        self._backend.changed = listener

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Run the backend, asleep: what it has begun to load in the first moment ends again."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._backend.run)
            await trio.sleep(_BEGUN)
            await self._backend.sleep()
            task_status.started()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request."""
        await self._backend.infer(request, emit)

    async def wake(self) -> None:
        """Load the model; the backend's own time limits hold."""
        await self._backend.wake()

    async def sleep(self) -> None:
        """Unload it."""
        await self._backend.sleep()

    async def alive(self) -> bool:
        """The backend mends itself, and says `failed` when it cannot."""
        return self._backend.entry.state not in ("failed", "asleep")

    def status(self) -> BackendStatus:
        """The backend's."""
        return self._backend.status()
