"""Whole peers over real sockets, some of them behind a wall: nobody can dial those, but by way of others."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from mesh.identity import Identity
from mesh.messages.inference import Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry
from mesh.peer import Peer, PeerSettings
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesh.service import InferenceService

LOCAL = ["/ip4/127.0.0.1/tcp/0"]
DONE = Done("stop", Usage(1, 2), Performance(1, 2, 3, 4, 5))
RUNNING = 7
"""What every node says of its model."""


async def until(condition: Callable[[], object], limit: float = 30.0) -> None:
    with trio.fail_after(limit):
        while not condition():  # noqa: ASYNC110 - no event tells of what several peers do
            await trio.sleep(0.005)


class Walled(Libp2pTransport):
    """Dials nobody who stands behind a wall."""

    walls: set[str]

    async def _reach(self, protocol: str, address: Any, *rest: Any) -> Any:
        if address.relay is None and address.peer_id in self.walls:
            raise ConnectionRefusedError("there is a wall")
        return await super()._reach(protocol, address, *rest)


@dataclass
class Street:
    """Nodes serve `m` by `service`. `events`: what each role saw of the others."""

    nursery: trio.Nursery
    service: InferenceService
    scopes: dict[Peer, trio.CancelScope] = field(default_factory=dict)
    walls: set[str] = field(default_factory=set)
    events: list[str] = field(default_factory=list)

    async def add(
        self,
        role: Any,
        *bootstrap: Peer,
        walled: bool = False,
        direct: bool = True,
        identity: Identity | None = None,
        listen: Sequence[str] = LOCAL,
        **settings: Any,
    ) -> Peer:
        """One that is linked with those it knows by their addresses. `direct`: whether its links may leave libp2p."""
        identity = identity or Identity.generate()
        if walled:
            self.walls.add(identity.peer_id)
        transport = Walled(identity, list(listen))
        transport.walls = self.walls
        known = [peer.addresses[0] for peer in bootstrap]
        configured = PeerSettings(identity=identity, role=role, name=role, mesh="street", bootstrap=known, **settings)
        service = self.service if role == "node" else None
        peer = Peer(configured, transport, service, direct=DirectTransport(identity, LOCAL) if direct else None)
        if role == "node":
            peer.announce([ModelEntry(id="m", state="ready")], {"m": ModelLoad("ready", running=RUNNING)})
        peer.registry.subscribe(lambda event: self.events.append(f"{role}: {event.kind} {event.peer.record.role}"))
        self.scopes[peer] = trio.CancelScope()
        await self.nursery.start(self._run, peer)
        await until(lambda: all(peer.peer_id in other.links for other in bootstrap))
        return peer

    async def _run(self, peer: Peer, *, task_status: trio.TaskStatus[None]) -> None:
        with self.scopes[peer]:
            await peer.run(task_status=task_status)


async def ask(peer: Peer, node: Peer) -> list[str]:
    """The texts of an answer that came to its end."""
    events: list[Any] = []
    await peer.links[node.peer_id].infer(InferenceRequest(request_id="r", model="m"), events.append)
    assert events[-1] == DONE
    return [event.text for event in events if isinstance(event, Delta)]


def carriers(one: Peer, other: Peer) -> list[str | None]:
    """What carries the link between them, as each side sees it."""
    views = (one.links.get(other.peer_id), other.links.get(one.peer_id))
    return [view.carrier if view else None for view in views]
