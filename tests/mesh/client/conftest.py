"""A small mesh in memory: a bootstrap peer, nodes that answer as a test says, and clients."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from mesh.client import MeshClient
from mesh.identity import Identity
from mesh.messages.inference import Accepted, Delta, Done, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry
from mesh.peer import Peer, PeerSettings
from mesh.transport.memory import MemoryNetwork, MemoryTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mesh.messages.inference import InferenceRequest

DONE = Done("stop", Usage(1, 2), Performance(1, 2, 3, 4, 5))


@dataclass
class Service:
    """Says `words`, then ends; or fails with `error` after `before` words; or hangs there."""

    words: tuple[str, ...] = ("hello ", "world")
    error: Exception | None = None
    before: int = 0
    hangs: bool = False
    asked: list[InferenceRequest] = field(default_factory=list)
    running: int = 0

    async def infer(self, request: InferenceRequest, emit: Callable[[Any], None]) -> None:
        self.asked.append(request)
        self.running += 1
        try:
            emit(Accepted(running=self.running))
            stops = self.error is not None or self.hangs
            for index, word in enumerate(self.words[: self.before] if stops else self.words):
                emit(Delta(index, [index], word))
                await trio.sleep(0.01)
            if self.hangs:
                await trio.sleep_forever()
            if self.error is not None:
                raise self.error
            emit(DONE)
        finally:
            self.running -= 1


class Village:
    """`node` adds one that serves `m`; `client` makes one that knows the bootstrap peer. `settings` are every peer's."""

    def __init__(self, nursery: trio.Nursery, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.network = MemoryNetwork()
        self.nursery = nursery
        self.bootstrap: Peer | None = None

    async def node(
        self,
        service: Service | None = None,
        *,
        model: str = "m",
        state: Any = "ready",
        running: int = 0,
        tasks: tuple[str, ...] = (),
        aliases: tuple[str, ...] = (),
    ) -> Peer:
        peer = self.peer("node", service or Service())
        entry = ModelEntry(id=model, state=state, capabilities=Capabilities(tasks=list(tasks)), aliases=list(aliases))
        peer.announce([entry], {model: ModelLoad(state, running=running, slots=4)})
        await self.nursery.start(peer.run)
        return peer

    def peer(self, role: Any, service: Any = None, **settings: Any) -> Peer:
        identity = Identity.generate()
        bootstrap = self.bootstrap.addresses if self.bootstrap else []
        fields = {"identity": identity, "role": role, "name": role, "mesh": "test", "bootstrap": bootstrap}
        return Peer(PeerSettings(**{**fields, **self.settings, **settings}), MemoryTransport(identity, self.network), service)

    def client(self, **options: Any) -> MeshClient:
        assert self.bootstrap is not None
        fields = {"bootstrap": self.bootstrap.addresses, "mesh": "test", "mdns": False, "transport": self.transport}
        return MeshClient(**{**fields, **options})

    def transport(self, identity: Identity) -> MemoryTransport:
        return MemoryTransport(identity, self.network)


@pytest.fixture
def service() -> type[Service]:
    return Service


@pytest.fixture
def village() -> Any:
    @asynccontextmanager
    async def build(**settings: Any) -> AsyncIterator[Village]:
        async with trio.open_nursery() as nursery:
            built = Village(nursery, settings)
            built.bootstrap = built.peer("bootstrap")
            await nursery.start(built.bootstrap.run)
            yield built
            nursery.cancel_scope.cancel()

    return build
