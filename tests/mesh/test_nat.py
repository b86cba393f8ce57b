"""Whole peers over real sockets, one of them behind a wall: nobody can dial it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from mesh import upgrade
from mesh.messages.inference import Delta, InferenceRequest
from mesh.reachability import reachability
from tests.mesh.street import DONE, Street, ask, carriers, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mesh.peer import Peer


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


@pytest.fixture
async def town() -> AsyncIterator[Street]:
    async with trio.open_nursery() as nursery:
        yield Street(nursery, Service())
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reachability, "SETTLE", 0.05)
    monkeypatch.setattr(upgrade, "DELAYS", (0.2, 0.2, 0.2))


async def test_a_node_behind_a_wall_is_served_over_the_bootstrap_peer(town: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    town.service.gate.set()
    bootstrap = await town.add("bootstrap")
    node = await town.add("node", bootstrap, walled=True)
    await until(lambda: node.nat.reservations.relays == [bootstrap.peer_id])
    assert node.nat.reachability.verdict == "not reachable"
    assert bootstrap.nat.relay.reservations == [node.peer_id]
    # The gateway is behind a wall as well, so there is no direct path at all.
    gateway = await town.add("gateway", bootstrap, walled=True)
    await until(lambda: carriers(gateway, node) == ["relay"] * 2)
    link = gateway.links[node.peer_id]
    assert link.via == bootstrap.peer_id
    assert f"/p2p/{bootstrap.peer_id}/p2p-circuit" in link.remote_address
    assert await ask(gateway, node) == ["0 ", "1 ", "2 "]
    assert len(bootstrap.nat.relay.circuits) == 1
    await trio.sleep(0.5)
    assert carriers(gateway, node)[0] == "relay", "no upgrade is tried over it"


async def relayed(town: Street, **gateway: Any) -> tuple[Peer, Peer, Peer]:
    """Bootstrap peer, gateway and node, the latter two joined by the first."""
    bootstrap = await town.add("bootstrap")
    node = await town.add("node", bootstrap, walled=True)
    await until(lambda: node.nat.reservations.relays)
    asker = await town.add("gateway", bootstrap, **gateway)
    await until(lambda: asker.links.get(node.peer_id) and node.links.get(asker.peer_id))
    return bootstrap, asker, node


async def test_a_direct_path_takes_over_and_no_token_is_lost(town: Street) -> None:
    bootstrap, gateway, node = await relayed(town, walled=True)
    first, used, answers = gateway.links[node.peer_id], set(), []
    stop = trio.Event()

    async def client() -> None:
        while not stop.is_set():
            used.add(gateway.links[node.peer_id].carrier)
            answers.append(await ask(gateway, node))

    async with trio.open_nursery() as nursery:
        for _ in range(16):
            nursery.start_soon(client)
        await until(lambda: first.in_flight == 16)
        town.walls.discard(gateway.peer_id)
        # As when an address changes: what a peer learns of itself starts its tries anew.
        node.nat._paths.news()
        await until(lambda: carriers(gateway, node) == ["direct"] * 2)
        nursery.start_soon(client)
        await until(lambda: gateway.links[node.peer_id].in_flight)
        assert first.in_flight == 16
        town.service.gate.set()
        await until(first.closed.is_set, limit=40)
        stop.set()
    assert used >= {"relay", "direct"}
    assert all(answer == [f"{number} " for number in range(len(answer))] for answer in answers)
    assert sorted(event for event in town.events if "joined node" in event or "left" in event) == [
        "bootstrap: joined node",
        "gateway: joined node",
    ], "nobody saw the node leave"
    await until(lambda: not bootstrap.nat.relay.circuits)
    assert node.trail.outcome("direct path", gateway.peer_id) == "found over libp2p"


async def test_who_can_be_dialled_is_dialled_by_the_one_who_cannot(town: Street) -> None:
    town.service.gate.set()
    _, gateway, node = await relayed(town)
    await until(lambda: carriers(gateway, node) == ["direct"] * 2)
    assert node.links[gateway.peer_id].dialled
    assert await ask(gateway, node) == ["0 ", "1 ", "2 "]


async def test_reservations_and_circuits_come_back_after_a_restart_of_the_relay(town: Street) -> None:
    town.service.gate.set()
    bootstrap, gateway, node = await relayed(town, walled=True)
    listen = [bootstrap.addresses[0].rpartition("/p2p/")[0]]
    town.scopes[bootstrap].cancel()
    await until(lambda: not gateway.links and not node.links)
    assert node.nat.reservations.relays == []
    again = await town.add("bootstrap", identity=bootstrap.identity, listen=listen)
    # The gateway is hidden too, and may have found that out already.
    await until(lambda: node.peer_id in again.nat.relay.reservations)
    await until(lambda: carriers(gateway, node)[0] == "relay")
    assert await ask(gateway, node) == ["0 ", "1 ", "2 "]


async def test_what_a_peer_says_of_itself_helps_others_to_reach_it(town: Street) -> None:
    bootstrap = await town.add("bootstrap")
    node = await town.add("node", bootstrap, walled=True)
    await until(lambda: node.nat.reservations.relays)
    seen = bootstrap.registry.peers[node.peer_id]
    await until(lambda: seen.record.addresses == node.nat.announced())
    circuit = f"{bootstrap.addresses[0]}/p2p-circuit/p2p/{node.peer_id}"
    assert seen.record.addresses == [*node.addresses, circuit]
    assert not seen.record.relay
    assert node.explain() == []
    assert node.trail.outcome("relay", bootstrap.peer_id) == "reaches us for others"
    assert node.trail.outcome("reachability", bootstrap.peer_id) == "could not reach us at any of our addresses"
    assert node.nat.report() == {
        "reachability": "not reachable",
        "reached_at": [],
        "relayed_by": [bootstrap.peer_id],
        "relays_others": False,
        "reservations": 0,
        "circuits": 0,
    }


async def test_a_peer_that_can_be_dialled_knows_it_and_relays_for_others(town: Street) -> None:
    bootstrap = await town.add("bootstrap", relay=False)
    helpful = await town.add("node", bootstrap)
    await until(lambda: helpful.nat.reachability.verdict == "reachable")
    assert helpful.nat.reachability.reached == helpful.addresses
    await until(lambda: bootstrap.registry.peers[helpful.peer_id].record.relay)
    # The bootstrap peer relays for nobody, and the two nodes are not linked: the record of the one leads the other to it.
    hidden = await town.add("node", bootstrap, walled=True, asks=True)
    await until(lambda: hidden.nat.reservations.relays == [helpful.peer_id])


async def test_where_nobody_relays_the_operator_is_told_what_to_do(town: Street) -> None:
    bootstrap = await town.add("bootstrap", relay=False)
    node = await town.add("node", bootstrap, walled=True)
    await until(lambda: node.nat.reachability.verdict == "not reachable")
    (sentence,) = node.explain()
    assert "open its TCP port" in sentence
    assert node.nat.announced() == node.addresses
