"""What a peer does with the table: whom it lets in, when it publishes, how it finds back; then whole peers on real sockets."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mesh.access import Access
from mesh.discovery import dht as module
from mesh.discovery.dht import Dht, DhtSettings
from mesh.discovery.seeds import FILE, Seeds
from mesh.discovery.table import Gate, Reach
from mesh.identity import Identity, PeerId
from mesh.keyring import Keyring
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry, NodeRecord
from mesh.peer import Peer, PeerSettings
from mesh.record import open_record, seal
from mesh.registry import Registry
from mesh.trail import Trail
from mesh.transport.libp2p import Libp2pTransport
from mesh.transport.libp2p.kad import Kademlia

ADDRESS = "/ip4/127.0.0.1/tcp/1/p2p/"


@dataclass
class Table:
    """A table that says who was greeted, and what was published when."""

    gate: Gate
    peers: list[PeerId] = field(default_factory=list)
    deaf: set[PeerId] = field(default_factory=set)
    said: list[tuple[float, str]] = field(default_factory=list)
    met: Counter[PeerId] = field(default_factory=Counter)
    gone: list[PeerId] = field(default_factory=list)

    def addresses(self, peer_id: PeerId) -> list[str]:
        return [ADDRESS + peer_id]

    async def run(self) -> None:
        await trio.sleep_forever()

    def meet(self, peer_id: PeerId, _addresses: Any) -> None:
        self.met[peer_id] += 1

    def lost(self, peer_id: PeerId) -> None:
        self.gone.append(peer_id)

    async def greet(self, peer_id: PeerId) -> bool:
        self._say(f"greet {peer_id}")
        if peer_id not in self.deaf and peer_id not in self.peers:
            self.peers.append(peer_id)
        return peer_id not in self.deaf

    async def refresh(self) -> None:
        self._say("refresh")

    async def publish(self, sealed: Any) -> None:
        self._say(f"publish {[entry.id for entry in open_record(sealed).models]}")

    async def provide(self, model: str) -> None:
        self._say(f"provide {model}")

    async def providers(self, _model: str) -> list[PeerId]:
        return []

    async def record(self, _peer_id: PeerId) -> None:
        return None

    def times(self, what: str) -> list[float]:
        return [at for at, said in self.said if said.startswith(what)]

    def _say(self, what: str) -> None:
        self.said.append((trio.current_time(), what))


class Member:
    mesh = "ours"
    leaving = False

    def __init__(self, role: str, *models: str, seeds: Any = None, access: Access | None = None, asks: bool = False) -> None:
        self.identity = Identity.generate()
        self.peer_id = self.identity.peer_id
        self.role = role
        self.asks = asks
        self.links: dict[PeerId, Any] = {}
        self.registry = Registry(self.peer_id, mesh="ours")
        self.trail = Trail()
        self.wanted: list[tuple[float, PeerId, list[str]]] = []
        self.sequence = 0
        self.serve(*models)
        reach = Reach(learn=self.registry.learn, want=self._want)
        self.dht = Dht(self, access or Access(mesh="ours"), reach, DhtSettings(table=self._make, seeds=seeds))

    def _make(self, gate: Gate) -> Table:
        self.table = Table(gate)
        return self.table

    def _want(self, peer_id: PeerId, way: str, addresses: list[str], _until: float) -> None:
        assert way == "dht"
        self.wanted.append((trio.current_time(), peer_id, addresses))

    def serve(self, *models: str) -> None:
        self.sequence += 1
        entries = [ModelEntry(id=model, state="ready", aliases=[f"{model}-alias"]) for model in models]
        self.sealed = seal(self.identity, record(self.identity, self.role, self.sequence, models=entries))

    def link(self, role: str = "node") -> PeerId:
        identity = Identity.generate()
        sealed = seal(identity, record(identity, role, 1))
        link = SimpleNamespace(
            peer_id=identity.peer_id,
            hello=SimpleNamespace(record=sealed),
            record=open_record(sealed),
            load={},
            leaving=False,
            reason="lost",
            closed=trio.Event(),
        )
        self.links[identity.peer_id] = link
        self.registry.linked(link)
        return identity.peer_id

    def unlink(self, peer_id: PeerId) -> None:
        link = self.links.pop(peer_id)
        link.closed.set()
        self.registry.unlinked(link)


def record(identity: Identity, role: str, sequence: int, **fields: Any) -> NodeRecord:
    return NodeRecord(
        peer_id=identity.peer_id,
        sequence=sequence,
        issued_at=0,
        ttl=120,
        role=role,
        name="x",
        mesh="ours",
        version="1",
        addresses=[ADDRESS + identity.peer_id],
        **fields,
    )


@pytest.fixture
def start(nursery):
    def run(member: Member) -> Member:
        nursery.start_soon(member.dht.run)
        return member

    return run


async def test_linked_peers_get_into_the_table_but_clients_do_not(autojump_clock, start):
    member = start(Member("node"))
    await trio.sleep(0.01)
    client, node, bootstrap = member.link("client"), member.link(), member.link("bootstrap")
    await trio.sleep(5)
    # The bootstrap peer knows most, so it comes first.
    assert member.table.peers == [bootstrap, node]
    assert member.table.met[client] == 0
    assert len(member.table.times("refresh")) == 1
    member.unlink(node)
    assert member.table.gone == [node]


async def test_the_table_is_refreshed_for_news_but_not_all_the_time(autojump_clock, start):
    member = start(Member("node"))
    for _ in range(20):
        member.link()
        await trio.sleep(2)
    refreshed = member.table.times("refresh")
    assert len(refreshed) >= 2
    assert all(later - earlier >= module.SOON for earlier, later in pairwise(refreshed))
    await trio.sleep(2 * module.REFRESH + 10)
    assert len(member.table.times("refresh")) >= len(refreshed) + 2


async def test_it_publishes_what_it_serves_again_and_again_and_at_once_when_that_changes(autojump_clock, start):
    member = start(Member("node", "a"))
    await trio.sleep(20)
    assert member.table.said == []
    member.link()
    await trio.sleep(module.PUBLISH * 3)
    assert 3 <= len(member.table.times("publish")) <= 4
    assert len(member.table.times("provide a-alias")) == len(member.table.times("publish"))
    changed = trio.current_time()
    member.serve("a", "b")
    await trio.sleep(module.SOON + 2 * module.LOOK)
    assert any(at >= changed for at in member.table.times("provide b"))


async def test_providing_many_models_keeps_to_what_others_take(autojump_clock, start):
    member = start(Member("node", *(f"model-{number}" for number in range(20))))
    member.link()
    await trio.sleep(module.PUBLISH)
    times = member.table.times("provide")[:40]
    assert len(times) == 40
    assert all(times[index + 8] - times[index] > 10 for index in range(32))


async def test_a_client_says_nothing_of_itself_and_who_leaves_neither(autojump_clock, start):
    client, leaving = start(Member("client", asks=True)), start(Member("node", "a"))
    leaving.leaving = True
    for member in (client, leaving):
        await trio.sleep(0.01)
        member.link()
    await trio.sleep(module.PUBLISH * 2)
    assert client.table.times("publish") == leaving.table.times("publish") == []
    assert not client.table.gate.serves
    assert leaving.table.gate.serves


async def test_who_lost_every_link_dials_a_few_of_those_it_knew(autojump_clock, start, tmp_path):
    member = start(Member("node", seeds=tmp_path / FILE))
    await trio.sleep(0.01)
    known = [member.link() for _ in range(7)]
    await trio.sleep(10)
    assert set(Seeds(tmp_path / FILE, "ours").peers) == set(known)
    assert member.wanted == []
    member.table.peers.clear()
    for peer_id in known:
        member.unlink(peer_id)
    await trio.sleep(module.LONELY + module.LOOK)
    assert len(member.wanted) == module.SEEDS_AT_ONCE
    await trio.sleep(module.DIAL_AGAIN - module.LONELY - 2 * module.LOOK)
    assert Counter(peer_id for _, peer_id, _ in member.wanted) == Counter(known)
    assert all(addresses == [ADDRESS + peer_id] for _, peer_id, addresses in member.wanted)
    member.link()
    member.wanted.clear()
    await trio.sleep(module.DIAL_AGAIN * 3)
    assert member.wanted == []


async def test_a_bootstrap_peer_looks_for_those_it_knew_whoever_comes_meanwhile(autojump_clock, start, tmp_path):
    knew = [Identity.generate().peer_id for _ in range(2)]
    Seeds(tmp_path / FILE, "ours").see({peer_id: [ADDRESS + peer_id] for peer_id in knew})
    bootstrap, node = Member("bootstrap", seeds=tmp_path / FILE), Member("node", seeds=tmp_path / FILE)
    for member in (bootstrap, node):
        member.table.deaf |= set(knew)
        start(member)
        await trio.sleep(0.01)
        member.link("gateway")
    await trio.sleep(10)
    assert {peer_id for _, peer_id, _ in bootstrap.wanted} == set(knew)
    assert node.wanted == []
    # Both asked them for the table, where no link is needed.
    assert all(member.table.times(f"greet {peer_id}") for peer_id in knew for member in (bootstrap, node))
    await trio.sleep(module.RETURN)
    bootstrap.wanted.clear()
    await trio.sleep(module.RETURN)
    assert bootstrap.wanted == []


async def test_the_trail_says_how_large_the_table_is_and_what_it_brought(autojump_clock, start):
    member = start(Member("gateway", asks=True))
    await trio.sleep(module.LOOK + 1)
    assert "has nobody in its table" in member.trail.outcome("dht", module.TARGET)
    assert any("needs one peer of the mesh to start from" in sentence for sentence in member.trail.explain())
    brought = member.link()
    member.unlink(brought)
    member.dht._finder.found(brought)
    member.link()
    await trio.sleep(5)
    assert member.trail.outcome("dht", module.TARGET) == "has 1 in its table and brought 0 of those that were linked"
    assert "The DHT has 1 in its table and brought 0 of those that were linked." in member.trail.explain()


def test_an_open_mesh_takes_near_peers_and_a_private_one_those_that_are_linked():
    async def check() -> None:
        denied, peer_id = Identity.generate().peer_id, Identity.generate().peer_id
        gate = Member("node", access=Access(mesh="ours", deny=frozenset((denied,)))).table.gate
        assert gate.admits(peer_id, None)
        assert gate.admits(peer_id, "/ip4/10.0.0.1/tcp/1")
        assert not gate.admits(peer_id, "/ip4/8.8.8.8/tcp/1")
        assert not gate.usable("/ip4/8.8.8.8/tcp/1")
        assert not gate.admits(denied, None)
        keyring = Keyring(None, "ours")
        keyring.rotate()
        private = Member("node", access=Access(mesh="ours", keyring=keyring))
        assert not private.table.gate.admits(peer_id, "/ip4/10.0.0.1/tcp/1")
        linked = private.link()
        assert private.table.gate.admits(linked, "/ip4/8.8.8.8/tcp/1")
        assert private.table.gate.usable("/ip4/8.8.8.8/tcp/1")
        private.unlink(linked)
        assert not private.table.gate.admits(linked, None)

    trio.run(check)


# Whole peers on real sockets.


class Town:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self.scopes: dict[PeerId, trio.CancelScope] = {}

    async def add(self, role: Any, *bootstrap: Peer, models: tuple[str, ...] = (), **access: Any) -> Peer:
        identity = Identity.generate()
        settings = PeerSettings(
            identity=identity,
            role=role,
            name=role,
            mesh="ours",
            bootstrap=[peer.addresses[0] for peer in bootstrap],
            access=Access(mesh="ours", **access),
        )
        transport = Libp2pTransport(identity, ["/ip4/127.0.0.1/tcp/0"])
        peer = Peer(settings, transport, dht=DhtSettings(table=partial(Kademlia, transport)))
        peer.announce([ModelEntry(id=model, state="ready") for model in models], {model: ModelLoad("ready") for model in models})
        scope = self.scopes[identity.peer_id] = trio.CancelScope()

        async def run(*, task_status: Any) -> None:
            with scope:
                await peer.run(task_status=task_status)

        await self._nursery.start(run)
        return peer

    def kill(self, peer: Peer) -> None:
        self.scopes[peer.peer_id].cancel()


@pytest.fixture
async def town(nursery, monkeypatch):
    monkeypatch.setattr(module, "WINDOW", 0.1)
    monkeypatch.setattr(module, "LOOK", 0.2)
    monkeypatch.setattr(module, "LONELY", 0.3)
    return Town(nursery)


async def until(condition: Any) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.05)


async def test_a_newcomer_that_knows_one_node_links_the_others(town):
    bootstrap = await town.add("bootstrap")
    nodes = [await town.add("node", bootstrap, models=(f"m{number}",)) for number in range(3)]
    await until(lambda: all(node._dht.size == 3 for node in nodes))
    town.kill(bootstrap)
    # Two nodes need no link; now that everybody else is gone they have some.
    await until(lambda: all(node.links for node in nodes))
    gateway = await town.add("gateway", nodes[0])
    await until(lambda: {node.peer_id for node in nodes} <= set(gateway.links))
    assert [entry.id for entry in gateway.registry.catalog()] == ["m0", "m1", "m2"]


async def test_a_private_mesh_answers_no_stranger(town):
    keyring = Keyring(None, "ours")
    keyring.rotate()

    def member() -> dict[str, Any]:
        copy = Keyring(None, "ours")
        copy.merge(keyring.shared())
        return {"keyring": copy}

    bootstrap = await town.add("bootstrap", **member())
    node = await town.add("node", bootstrap, models=("m",), **member())
    await until(lambda: node._dht.size == bootstrap._dht.size == 1)
    stranger = await town.add("node")
    table = stranger._dht._table
    for guarded in (bootstrap, node):
        table.meet(guarded.peer_id, guarded.addresses)
        assert not await table.greet(guarded.peer_id)
        assert await table.record(guarded.peer_id) is None
    assert await table.providers("m") == []
    assert stranger._dht.size == 0
    assert bootstrap._dht.size == node._dht.size == 1
    # A gateway with the key finds all as in an open mesh.
    gateway = await town.add("gateway", node, **member())
    await until(lambda: gateway._dht.size >= 1)
