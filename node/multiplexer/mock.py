"""The mock backend with an artificial wake time: what waking costs, without an accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import Unavailable
from node.backends.mock import MockBackend
from node.multiplexer.switchable import prove_awake

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit
    from node.backends.mock import MockSettings


class SleepyMock(MockBackend):
    """A `Switchable` whose `wake` takes `settings.wake_seconds`."""

    def __init__(self, model: str, settings: MockSettings, *, memory: int = 0) -> None:
        super().__init__(model, settings)
        self.memory = memory
        self._wake_seconds = settings.wake_seconds
        self._awake = False
        self.entry = msgspec.structs.replace(self.entry, wake_seconds=settings.wake_seconds)

    async def wake(self) -> None:
        """Take the time, then prove it."""
        if not self._awake:
            await trio.sleep(self._wake_seconds)
            self._awake = True
        await prove_awake(self.entry.id, self.infer)

    async def sleep(self) -> None:
        """At once."""
        self._awake = False

    async def alive(self) -> bool:
        """Whether it is awake."""
        return self._awake

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """As the mock; Unavailable while it is asleep."""
        if not self._awake:
            raise Unavailable(f"{self.entry.id} is asleep", code="model_asleep")
        await super().infer(request, emit)
