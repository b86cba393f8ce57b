"""Tables of the DHT on real transports."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from mesh.discovery.table import Gate
from mesh.identity import Identity, PeerId
from mesh.messages.record import ModelEntry, NodeRecord, SealedRecord
from mesh.record import seal
from mesh.transport.libp2p import Libp2pTransport
from mesh.transport.libp2p.kad import Kademlia

if TYPE_CHECKING:
    from collections.abc import Callable

HANG = 20.0
MESH = "test"


def record_of(identity: Identity, *, sequence: int = 1, mesh: str = MESH, **fields) -> SealedRecord:
    said = {"role": "node", "addresses": [], "models": [ModelEntry(id="m", state="ready")]} | fields
    record = NodeRecord(
        peer_id=identity.peer_id, sequence=sequence, issued_at=0, ttl=120, name="x", mesh=mesh, version="1", **said
    )
    return seal(identity, record)


@dataclass
class Member:
    """A running transport and its table, without links."""

    identity: Identity
    transport: Libp2pTransport
    table: Kademlia
    scope: trio.CancelScope
    admitted: Callable[[PeerId, str | None], bool] = field(default=lambda _peer_id, _address: True)

    @property
    def peer_id(self) -> PeerId:
        return self.identity.peer_id

    def meet(self, *others: Member) -> None:
        for other in others:
            self.table.meet(other.peer_id, other.transport.addresses)


class Fleet:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def start(self, *, serves: bool = True, mesh: str = MESH, admits=lambda _peer_id, _address: True) -> Member:
        identity = Identity.generate()
        transport = Libp2pTransport(identity, ["/ip4/127.0.0.1/tcp/0"])
        gate = Gate(
            own=identity.peer_id, mesh=mesh, serves=serves, admits=admits, usable=lambda _address: True, known=lambda _peer_id: ()
        )
        table = Kademlia(transport, gate)
        scope = trio.CancelScope()

        async def refuse(channel) -> None:
            channel.abort()

        async def run(*, task_status):
            with scope:
                async with trio.open_nursery() as nursery:
                    await nursery.start(transport.run, refuse)
                    nursery.start_soon(table.run)
                    task_status.started()

        await self._nursery.start(run)
        return Member(identity, transport, table, scope)

    async def many(self, count: int) -> list[Member]:
        """They all know the first one, and were in touch with it."""
        members = [await self.start() for _ in range(count)]
        for member in members[1:]:
            member.meet(members[0])
            assert await member.table.greet(members[0].peer_id)
        return members


@pytest.fixture
async def fleet():
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            yield Fleet(nursery)
            nursery.cancel_scope.cancel()


@pytest.fixture
def until():
    async def wait(condition) -> None:
        with trio.fail_after(HANG):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await trio.sleep(0.02)

    return wait
