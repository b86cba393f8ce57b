"""Whole peers over real sockets, one of them behind a wall: nobody can dial it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from mesh import upgrade
from mesh.identity import Identity
from mesh.messages.inference import Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry
from mesh.peer import Peer, PeerSettings
from mesh.reachability import reachability
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

LOCAL = ["/ip4/127.0.0.1/tcp/0"]
DONE = Done("stop", Usage(1, 2), Performance(1, 2, 3, 4, 5))


async def until(condition: Callable[[], object], limit: float = 30.0) -> None:
    with trio.fail_after(limit):
        while not condition():  # noqa: ASYNC110 - no event tells of what several peers do
            await trio.sleep(0.005)


class Walled(Libp2pTransport):
    """Dials nobody who stands behind a wall."""

    walls: set[str]

    async def _reach(self, protocol: str, address: Any) -> Any:
        if address.relay is None and address.peer_id in self.walls:
            raise ConnectionRefusedError("there is a wall")
        return await super()._reach(protocol, address)


@dataclass
class Service:
    """Emits deltas until `gate` is open, at least `count`."""

    gate: trio.Event = field(default_factory=trio.Event)
    count: int = 3

    async def infer(self, request: InferenceRequest, emit: Callable[[Any], None]) -> None:
        number = 0
        while number < self.count or not self.gate.is_set():
            emit(Delta(number, [number], f"{number} "))
            number += 1
            await trio.sleep(0.01)
        emit(DONE)


@dataclass
class Town:
    nursery: trio.Nursery
    service: Service = field(default_factory=Service)
    scopes: dict[Peer, trio.CancelScope] = field(default_factory=dict)
    walls: set[str] = field(default_factory=set)
    events: list[str] = field(default_factory=list)

    async def add(
        self,
        role: str,
        *bootstrap: Peer,
        walled: bool = False,
        identity: Identity | None = None,
        listen: Any = None,
        **settings: Any,
    ) -> Peer:
        identity = identity or Identity.generate()
        if walled:
            self.walls.add(identity.peer_id)
        known = [peer.addresses[0] for peer in bootstrap]
        transport = Walled(identity, listen or LOCAL)
        transport.walls = self.walls
        configured = PeerSettings(identity=identity, role=role, name=role, mesh="nat", bootstrap=known, **settings)
        service = self.service if role == "node" else None
        peer = Peer(configured, transport, service, direct=DirectTransport(identity, LOCAL))
        if role == "node":
            peer.announce([ModelEntry(id="m", state="ready")], {"m": ModelLoad("ready")})
        peer.registry.subscribe(lambda event: self.events.append(f"{role}: {event.kind} {event.peer.record.role}"))
        self.scopes[peer] = trio.CancelScope()
        await self.nursery.start(self._run, peer)
        return peer

    async def _run(self, peer: Peer, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scopes[peer]:
            await peer.run(task_status=task_status)


@pytest.fixture
async def town() -> AsyncIterator[Town]:
    async with trio.open_nursery() as nursery:
        yield Town(nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "SETTLE", 0.05)
    monkeypatch.setattr(upgrade, "DELAYS", (0.2, 0.2, 0.2))


def carrier(one: Peer, other: Peer) -> str | None:
    link = one.links.get(other.peer_id)
    return link.carrier if link else None


async def ask(peer: Peer, node: Peer) -> list[str]:
    events: list[Any] = []
    await peer.links[node.peer_id].infer(InferenceRequest(request_id="r", model="m"), events.append)
    assert events[-1] == DONE
    return [event.text for event in events if isinstance(event, Delta)]


async def test_a_node_behind_a_wall_is_served_over_the_bootstrap_peer(town: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    town.service.gate.set()
    bootstrap = await town.add("bootstrap")
    node = await town.add("node", bootstrap, walled=True)
    await until(lambda: node.nat.reservations.relays == [bootstrap.peer_id])
    assert node.nat.reachability.verdict == "not reachable"
    assert bootstrap.nat.relay.reservations == [node.peer_id]
    # The gateway is behind a wall as well, so there is no direct path at all.
    gateway = await town.add("gateway", bootstrap, walled=True)
    await until(lambda: carrier(gateway, node) == carrier(node, gateway) == "relay")
    link = gateway.links[node.peer_id]
    assert link.via == bootstrap.peer_id
    assert f"/p2p/{bootstrap.peer_id}/p2p-circuit" in link.remote_address
    assert await ask(gateway, node) == ["0 ", "1 ", "2 "]
    assert len(bootstrap.nat.relay.circuits) == 1
    await trio.sleep(0.5)
    assert carrier(gateway, node) == "relay", "no upgrade is tried over it"
