"""Two whole peers over real sockets: their link moves from libp2p to a direct connection, and back when that is lost."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from mesh import upgrade
from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.messages.inference import Delta, InferenceRequest
from mesh.messages.link import UpgradeOffer
from tests.mesh.street import DONE, RUNNING, Street, ask, carriers, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass
class Service:
    """Emits `count` deltas, then waits for `gate` before it is done."""

    gate: trio.Event = field(default_factory=trio.Event)
    count: int = 3

    async def infer(self, request: InferenceRequest, emit: Callable[[Any], None]) -> None:
        for number in range(self.count):
            emit(Delta(number, [number], f"{number} "))
            await trio.lowlevel.checkpoint()
        await self.gate.wait()
        emit(DONE)


@pytest.fixture
async def town() -> AsyncIterator[Street]:
    async with trio.open_nursery() as nursery:
        yield Street(nursery, Service())
        nursery.cancel_scope.cancel()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "DELAYS", (0.2, 0.2, 0.2))


async def test_a_link_becomes_direct_and_the_first_one_ends(town: Street) -> None:
    gateway = await town.add("gateway")
    node = await town.add("node", gateway)
    first = gateway.links[node.peer_id], node.links[gateway.peer_id]
    assert carriers(gateway, node) == ["libp2p", "libp2p"]
    await until(lambda: carriers(gateway, node) == ["direct", "direct"])
    assert gateway.links[node.peer_id].load["m"].running == RUNNING
    await until(lambda: all(link.closed.is_set() for link in first))
    assert any("replaced by a direct link" in link.reason for link in first)
    assert node.links[gateway.peer_id].dialled, "who dialled libp2p dials this too"
    town.service.gate.set()
    assert await ask(gateway, node) == ["0 ", "1 ", "2 "]
    assert sorted(town.events) == ["gateway: joined node", "node: joined gateway"], "nobody saw anybody come or go"


async def test_a_request_under_way_finishes_on_the_first_link(town: Street) -> None:
    gateway = await town.add("gateway")
    node = await town.add("node", gateway)
    first, answers = gateway.links[node.peer_id], []

    async def slow() -> None:
        answers.append(await ask(gateway, node))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow)
        await until(lambda: carriers(gateway, node) == ["direct", "direct"])
        await trio.sleep(2.5)
        assert not first.closed.is_set()
        assert first.in_flight == 1
        town.service.gate.set()
        assert await ask(gateway, node) == ["0 ", "1 ", "2 "]
    assert answers[0] == ["0 ", "1 ", "2 "]
    await until(first.closed.is_set)
    assert carriers(gateway, node) == ["direct", "direct"]


async def test_nothing_is_lost_or_doubled_under_64_streams(town: Street) -> None:
    town.service.gate.set()
    town.service.count = 20
    gateway = await town.add("gateway")
    node = await town.add("node", gateway)
    used: set[str] = set()
    stop = trio.Event()

    async def client() -> None:
        while not stop.is_set():
            used.add(gateway.links[node.peer_id].carrier)
            assert await ask(gateway, node) == [f"{number} " for number in range(20)]

    async with trio.open_nursery() as nursery:
        for _ in range(64):
            nursery.start_soon(client)
        first = gateway.links[node.peer_id]
        await until(first.closed.is_set, limit=40)
        await trio.sleep(0.2)
        stop.set()
    assert used == {"libp2p", "direct"}


async def test_a_lost_direct_link_falls_back_to_libp2p_even_while_the_first_one_drains(town: Street) -> None:
    gateway = await town.add("gateway")
    node = await town.add("node", gateway)
    first, answers = gateway.links[node.peer_id], []

    async def slow() -> None:
        answers.append(await ask(gateway, node))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow)
        await until(lambda: carriers(gateway, node) == ["direct", "direct"])
        lost = node.links[gateway.peer_id]
        gateway.links[node.peer_id]._channel.abort()
        await until(lambda: node.links.get(gateway.peer_id) not in (None, lost))
        assert not first.closed.is_set()
        town.service.gate.set()
    assert answers[0] == ["0 ", "1 ", "2 "]
    await until(lambda: carriers(gateway, node) == ["direct", "direct"])


@pytest.mark.parametrize("without", ["gateway", "node"])
async def test_both_sides_must_want_it(town: Street, without: str) -> None:
    gateway = await town.add("gateway", direct=without != "gateway")
    node = await town.add("node", gateway, direct=without != "node")
    await trio.sleep(1)
    assert carriers(gateway, node) == ["libp2p", "libp2p"]


async def test_a_peer_that_offers_nothing_is_asked_a_few_times_and_nothing_changes(town: Street, caplog: Any) -> None:
    caplog.set_level("INFO", "mesh.upgrade")
    gateway = await town.add("gateway")
    asked: list[str] = []
    gateway._links.upgrades._direct.offer = lambda peer_id: asked.append(peer_id) or UpgradeOffer()
    node = await town.add("node", gateway)
    link = node.links[gateway.peer_id]
    await until(lambda: len(asked) == 3)
    await trio.sleep(0.6)
    assert asked == [node.peer_id] * 3
    assert node.links[gateway.peer_id] is link
    assert "it stays on libp2p: it offered none" in caplog.text


async def test_a_peer_that_never_answers_is_not_waited_for(town: Street, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    caplog.set_level("INFO", "mesh.upgrade")
    monkeypatch.setattr(upgrade, "OFFER_LIMIT", 0.1)
    gateway = await town.add("gateway")
    monkeypatch.setattr(gateway._links.upgrades, "hear", lambda _link, _message: None)
    node = await town.add("node", gateway)
    await until(lambda: "it offered none" in caplog.text)
    assert carriers(gateway, node) == ["libp2p", "libp2p"]


async def test_a_drain_is_bounded(town: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "DRAIN_LIMIT", 0.5)
    gateway = await town.add("gateway")
    node = await town.add("node", gateway)
    with pytest.raises(Unavailable) as raised:
        await ask(gateway, node)
    assert raised.value.code == "link_lost"
    assert carriers(gateway, node) == ["direct", "direct"]


async def test_links_that_drain_are_among_every_link(town: Street) -> None:
    gateway = await town.add("gateway")
    node = await town.add("node", gateway)
    first = gateway.links[node.peer_id]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, gateway, node)
        await until(lambda: carriers(gateway, node) == ["direct", "direct"])
        assert gateway.every_link == [first, gateway.links[node.peer_id]]
        town.service.gate.set()
    await until(lambda: len(gateway.every_link) == 1)
    town.scopes[node].cancel()
    await until(lambda: gateway.every_link == [])


async def test_the_memory_of_failures_is_bounded(town: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "MAX_FAILURES", 2)
    upgrades = (await town.add("gateway"))._links.upgrades
    for instance in ("one", "two", "one", "three"):
        upgrades._remember(instance, lived=0.0)
    assert upgrades._failures == {"one": 2, "three": 1}
    upgrades._remember("one", lived=upgrade.STEADY)
    assert upgrades._failures == {"three": 1}


async def test_a_wrong_fingerprint_leaves_the_link_on_libp2p(town: Street, caplog: Any) -> None:
    caplog.set_level("INFO", "mesh.upgrade")
    gateway = await town.add("gateway")
    true = gateway._links.upgrades._direct.offer
    gateway._links.upgrades._direct.offer = lambda peer_id: msgspec.structs.replace(true(peer_id), fingerprint=bytes(32))
    node = await town.add("node", gateway)
    await until(lambda: "another certificate" in caplog.text)
    town.service.gate.set()
    assert carriers(gateway, node) == ["libp2p", "libp2p"]
    assert await ask(gateway, node) == ["0 ", "1 ", "2 "]


async def test_a_direct_link_that_keeps_dying_is_not_opened_in_a_circle(town: Street, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upgrade, "DELAYS", (0.1, 300.0, 300.0))
    gateway = await town.add("gateway")
    node = await town.add("node", gateway)
    await until(lambda: carriers(gateway, node) == ["direct", "direct"])
    gateway.links[node.peer_id]._channel.abort()
    await until(lambda: carriers(gateway, node) == ["libp2p", "libp2p"])
    await trio.sleep(1)
    assert carriers(gateway, node) == ["libp2p", "libp2p"]


async def test_whoever_notices_first_that_a_direct_link_is_lost_is_not_refused(
    town: Street, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upgrade, "DELAYS", (0.1, 300.0, 300.0))
    monkeypatch.setattr(upgrade, "SETTLING", 0.0)
    gateway = await town.add("gateway")
    node = await town.add("node", gateway)
    await until(lambda: carriers(gateway, node) == ["direct", "direct"])
    lost, stale = gateway.links[node.peer_id], node.links[gateway.peer_id]
    # The end that aborts notices when it writes the next time; the other one at once, and dials.
    stale._channel.abort()
    await until(lambda: gateway.links.get(node.peer_id) not in (None, lost))
    again = gateway.links[node.peer_id]
    assert again.dialled
    await trio.sleep(1.5)
    assert gateway.links[node.peer_id] is again
    assert carriers(gateway, node) == ["libp2p", "libp2p"]


async def test_a_peer_that_restarts_is_upgraded_again(town: Street) -> None:
    gateway = await town.add("gateway")
    identity = Identity.generate()
    node = await town.add("node", gateway, identity=identity)
    await until(lambda: carriers(gateway, node) == ["direct", "direct"])
    town.scopes[node].cancel()
    await until(lambda: not gateway.links)
    again = await town.add("node", gateway, identity=identity)
    await until(lambda: carriers(gateway, again) == ["direct", "direct"])


async def test_two_peers_that_dial_each_other_settle_on_one_direct_link(town: Street) -> None:
    one = await town.add("bootstrap")
    other = await town.add("bootstrap", one)
    one._dialler.hold(one._nursery, other.peer_id, other.addresses)
    await until(lambda: carriers(one, other) == ["direct", "direct"])
    await trio.sleep(1)
    assert carriers(one, other) == ["direct", "direct"]


async def test_leaving_on_a_direct_link_is_heard(town: Street) -> None:
    gateway = await town.add("gateway")
    node = await town.add("node", gateway)
    await until(lambda: carriers(gateway, node) == ["direct", "direct"])
    await node.leave()
    await until(lambda: "gateway: left node" in town.events)
    with pytest.raises(Unavailable) as raised:
        await ask(gateway, node)
    assert raised.value.code == "leaving"


async def test_a_silent_direct_link_is_noticed(town: Street) -> None:
    gateway = await town.add("gateway")
    node = await town.add("node", gateway)
    await until(lambda: carriers(gateway, node) == ["direct", "direct"])
    link = gateway.links[node.peer_id]
    # What a stopped process does: its socket stays, and nothing comes out of it.
    node.links[gateway.peer_id]._channel.send_all = partial(_forever)
    await until(link.closed.is_set)
    assert "silent" in link.reason


async def _forever(_data: bytes) -> None:
    await trio.sleep_forever()
