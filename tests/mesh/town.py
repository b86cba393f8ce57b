"""Whole peers over the memory network."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from mesh.identity import Identity
from mesh.messages.inference import Done, InferenceRequest, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry
from mesh.peer import Peer, PeerSettings
from mesh.transport.memory import MemoryNetwork, MemoryTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

DONE = Done("stop", Usage(1, 2), Performance(1, 2, 3, 4, 5))
MODEL = ModelEntry(id="m", state="ready")


@dataclass
class Service:
    """Counts what it answers; waits while `gate` is closed."""

    answered: int = 0
    gate: trio.Event = field(default_factory=trio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def infer(self, request: InferenceRequest, emit: Callable[[Any], None]) -> None:
        await self.gate.wait()
        self.answered += 1
        emit(DONE)


@dataclass
class Town:
    """Peers of one memory network, each under a cancel scope of its own."""

    nursery: trio.Nursery
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    scopes: dict[str, trio.CancelScope] = field(default_factory=dict)
    transports: dict[str, MemoryTransport] = field(default_factory=dict)

    async def add(
        self,
        role: str,
        *bootstrap: Peer | str,
        identity: Identity | None = None,
        mesh: str = "test",
        transport: dict[str, Any] | None = None,
        ready: bool = True,
        discovery: dict[str, Any] | None = None,
        service: Service | None = None,
    ) -> Peer:
        identity = identity or Identity.generate()
        addresses = [one if isinstance(one, str) else one.addresses[0] for one in bootstrap]
        settings = PeerSettings(identity=identity, role=role, name=f"a {role}", mesh=mesh, bootstrap=addresses)
        medium = MemoryTransport(identity, self.network, **(transport or {}))
        peer = Peer(settings, medium, service, discovery=discovery)
        if role == "node":
            peer.announce([MODEL], {"m": ModelLoad("ready")})
        self.scopes[peer.instance] = trio.CancelScope()
        self.transports[peer.instance] = medium
        if ready:
            await self.nursery.start(self._run, peer)
        else:
            self.nursery.start_soon(self._run, peer)
        return peer

    def kill(self, peer: Peer) -> None:
        """Death without a word."""
        self.transports[peer.instance].die()
        self.scopes[peer.instance].cancel()

    async def _run(self, peer: Peer, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with self.scopes[peer.instance]:
            await peer.run(task_status=task_status)


@asynccontextmanager
async def town(**network: Any) -> AsyncIterator[Town]:
    async with trio.open_nursery() as nursery:
        built = Town(nursery, MemoryNetwork(**network))
        yield built
        surprises = [error for medium in built.transports.values() for error in medium.failures]
        nursery.cancel_scope.cancel()
    assert surprises == []


async def until(condition: Callable[[], object], limit: float = 60.0) -> float:
    """Wait for a condition; how long it took."""
    started = trio.current_time()
    while not condition():
        assert trio.current_time() - started < limit, "it did not happen"
        await trio.sleep(0.05)
    return trio.current_time() - started


def ask() -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m")


def served(gateway: Peer) -> set[str]:
    return {view.peer_id for view in gateway.registry.nodes("m")}


@dataclass(frozen=True)
class Heard:
    peer_id: str
    addresses: list[str]
    mesh: str = "test"
    role: str = "node"


def hearing(*heard: Heard) -> dict[str, Any]:
    class Way:
        async def run(self, found, *, task_status=trio.TASK_STATUS_IGNORED):
            task_status.started()
            for one in heard:
                found(one)
            await trio.sleep_forever()

    return {"mdns": lambda _peer: Way()}
