"""Whole peers over the memory network: who links with whom, and what happens when somebody dies, leaves or comes back."""

from __future__ import annotations

import logging
import secrets
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from mesh.errors import Misconfigured, Unavailable
from mesh.framing import frame
from mesh.identity import Identity
from mesh.link.codec import encode, join
from mesh.messages.inference import Done, InferenceRequest, Performance, Usage
from mesh.messages.link import Hello, ModelLoad, Records
from mesh.messages.record import ModelEntry, NodeRecord, SealedRecord
from mesh.peer import Peer, PeerSettings
from mesh.record import RECORD_TTL, open_record, seal
from mesh.transport.memory import MemoryNetwork, MemoryTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

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


# Finding each other


async def test_records_travel_by_way_of_a_bootstrap_and_requests_do_not(autojump_clock):
    async with town(latency=0.01) as here:
        service = Service()
        bootstrap = await here.add("bootstrap")
        one = await here.add("node", bootstrap, service=service)
        gateway = await here.add("gateway", bootstrap)
        two = await here.add("node", bootstrap, service=service)
        await until(lambda: served(gateway) == {one.peer_id, two.peer_id}, limit=2)
        assert set(gateway.links) == {bootstrap.peer_id, one.peer_id, two.peer_id}
        assert set(one.links) == {bootstrap.peer_id, gateway.peer_id}
        for node in (one, two):
            events: list[Any] = []
            await gateway.links[node.peer_id].infer(ask(), events.append)
            assert events == [DONE]
        assert service.answered == 2
        assert [entry.id for entry in gateway.registry.catalog()] == ["m"]


async def test_a_gateway_learns_of_nodes_behind_two_bootstraps(autojump_clock):
    async with town() as here:
        west = await here.add("bootstrap")
        east = await here.add("bootstrap", west)
        node = await here.add("node", west)
        gateway = await here.add("gateway", east)
        await until(lambda: served(gateway) == {node.peer_id}, limit=3)
        assert west.peer_id not in gateway.links


async def test_a_node_may_come_first_and_its_bootstrap_later(autojump_clock):
    async with town() as here:
        identity = Identity.generate()
        address = f"/memory/77/p2p/{identity.peer_id}"
        node = await here.add("node", address)
        assert node.links == {}
        assert "refused" in next(iter(node.trail))
        await trio.sleep(100)
        bootstrap = await here.add("bootstrap", identity=identity, transport={"number": 77})
        assert bootstrap.addresses == [address]
        await until(lambda: bootstrap.peer_id in node.links, limit=31)


async def test_a_mesh_of_fifty_through_one_bootstrap(autojump_clock):
    async with town(latency=0.005) as here:
        bootstrap = await here.add("bootstrap")
        gateways = [await here.add("gateway", bootstrap, ready=False) for _ in range(3)]
        nodes = {(await here.add("node", bootstrap, ready=False)).peer_id for _ in range(47)}
        await until(lambda: all(served(gateway) == nodes for gateway in gateways), limit=20)
        assert len(bootstrap.links) == 50
        assert all(len(gateway.links) == 48 for gateway in gateways)


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


async def test_a_gateway_dials_the_node_that_it_hears_of(autojump_clock):
    async with town() as here:
        node = await here.add("node")
        gateway = await here.add("gateway", discovery=hearing(Heard(node.peer_id, node.addresses)))
        await until(lambda: served(gateway) == {node.peer_id}, limit=2)


async def test_a_gateway_dials_gateways_that_it_hears_of_for_they_may_serve_foreign_services(autojump_clock):
    async with town() as here:
        other = await here.add("gateway")
        gateway = await here.add("gateway", discovery=hearing(Heard(other.peer_id, other.addresses, role="gateway")))
        await until(lambda: other.peer_id in gateway.links, limit=5)
        assert gateway.registry.nodes() == []
        other.announce([MODEL], {"m": ModelLoad("ready")})
        await until(lambda: served(gateway) == {other.peer_id}, limit=5)


async def test_a_node_dials_nobody_that_it_hears_of(autojump_clock):
    async with town() as here:
        other = await here.add("node")
        gateway = await here.add("gateway")
        heard = hearing(Heard(other.peer_id, other.addresses), Heard(gateway.peer_id, gateway.addresses, role="gateway"))
        node = await here.add("node", discovery=heard)
        await trio.sleep(20)
        assert node.links == {}


async def test_sightings_of_ourselves_of_other_meshes_and_of_nonsense_are_harmless(autojump_clock):
    async with town() as here:
        identity, stranger = Identity.generate(), Identity.generate()
        heard = hearing(
            Heard(identity.peer_id, ["/memory/1/p2p/" + identity.peer_id]),
            Heard(stranger.peer_id, ["/memory/2/p2p/" + stranger.peer_id], mesh="elsewhere"),
            Heard("nonsense", ["nonsense", "/ip4/1.2.3.4"]),
            Heard(stranger.peer_id, ["/memory/1/p2p/" + identity.peer_id]),
        )
        gateway = await here.add("gateway", identity=identity, discovery=heard)
        await trio.sleep(20)
        assert gateway.links == {}
        assert any("elsewhere" in line for line in gateway.trail)


async def test_ways_of_hearing_that_fail_do_not_end_the_peer(autojump_clock, caplog):
    class Deaf:
        async def run(self, found, *, task_status=trio.TASK_STATUS_IGNORED):
            raise Unavailable("no interface takes multicast")

    class Broken:
        def __init__(self, _peer):
            raise RuntimeError("zeroconf fell over")

    async with town() as here:
        gateway = await here.add("gateway", discovery={"mdns": lambda _: Deaf(), "other": Broken})
        await trio.sleep(15)
        assert any("no interface" in line for line in gateway.trail)
        assert any("it broke" in line for line in gateway.trail)
        assert any("mDNS did not start: no interface" in sentence for sentence in gateway.trail.explain())
        assert "zeroconf fell over" in caplog.text


async def test_a_lonely_peer_says_why_after_ten_seconds(autojump_clock, caplog):
    async with town() as here:
        identity = Identity.generate()
        gateway = await here.add("gateway", f"/memory/77/p2p/{identity.peer_id}")
        caplog.clear()
        await trio.sleep(11)
        assert any("/memory/77" in line and "Nothing listens there: start `mesh-bootstrap`" in line for line in caplog.messages)
        assert any("mDNS is off" in line for line in caplog.messages)
        assert gateway.trail.explain() != []


async def test_each_cause_of_loneliness_has_a_sentence_of_its_own(autojump_clock, caplog):
    """Multicast blocked, a wrong bootstrap address, another mesh, nobody there: what the log says after ten seconds."""

    def way(interfaces: list[str], heard_itself: bool, *heard: Heard) -> dict[str, Any]:
        class Way:
            def __init__(self, _peer):
                self.interfaces, self.heard_itself = interfaces, heard_itself

            async def run(self, found, *, task_status):
                task_status.started()
                for one in heard:
                    found(one)
                await trio.sleep_forever()

        return {"mdns": Way}

    stranger = Identity.generate().peer_id
    said = {}
    for cause, discovery, bootstrap in (
        ("blocked", way(["eth0 10.0.0.1"], False), []),
        ("alone", way(["eth0 10.0.0.1"], True), []),
        ("other mesh", way(["eth0 10.0.0.1"], True, Heard(stranger, ["/memory/9/p2p/" + stranger], mesh="elsewhere")), []),
        ("wrong address", way(["eth0 10.0.0.1"], True), [f"/memory/77/p2p/{stranger}"]),
    ):
        async with town() as here:
            caplog.clear()
            await here.add("node", *bootstrap, discovery=discovery)
            await trio.sleep(11)
            said[cause] = " ".join(record.message for record in caplog.records if record.name == "mesh.peer")
    assert "nobody, not even itself, on eth0 10.0.0.1: multicast is blocked on this machine" in said["blocked"]
    assert "has heard of nobody yet, on eth0 10.0.0.1. Either no other peer runs here" in said["alone"]
    assert f"{stranger} was heard, but it is in mesh 'elsewhere', not 'test'" in said["other mesh"]
    assert f"Bootstrap /memory/77/p2p/{stranger} could not be used" in said["wrong address"]
    assert "multicast is blocked" not in said["alone"] + said["other mesh"] + said["wrong address"]
    assert "could not be used" not in said["blocked"] + said["alone"] + said["other mesh"]


async def test_who_asks_says_when_peers_are_there_and_no_node(autojump_clock, caplog):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        gateway = await here.add("gateway", bootstrap)
        await trio.sleep(11)
        (said,) = [
            line for line in caplog.messages if line.startswith("Linked with 1 other peer of the mesh, but no node was heard")
        ]
        assert f"Start one: `mesh-node --mesh test --bootstrap {gateway.addresses[0]}`" in said
        await here.add("node", bootstrap)
        await until(lambda: served(gateway))
        assert gateway.explain() == []


async def test_a_bootstrap_peer_that_nobody_finds_says_how_others_come(autojump_clock, caplog):
    caplog.set_level(logging.INFO)
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        await trio.sleep(11)
        assert any(f"--bootstrap {bootstrap.addresses[0]}" in line for line in caplog.messages)


@pytest.mark.parametrize("address", ["", "127.0.0.1:4001", "/ip4/127.0.0.1/tcp/4001", "/ip4/127.0.0.1/tcp/4001/p2p/me", "/p2p/x"])
async def test_a_bootstrap_address_that_is_none_is_named(autojump_clock, address):
    identity = Identity.generate()
    settings = PeerSettings(identity=identity, role="node", name="n", bootstrap=[address])
    with pytest.raises(Misconfigured, match="--bootstrap"):
        Peer(settings, MemoryTransport(identity, MemoryNetwork()))


async def test_a_peer_that_is_its_own_bootstrap_gives_that_up(autojump_clock):
    async with town() as here:
        identity = Identity.generate()
        peer = await here.add("bootstrap", f"/memory/5/p2p/{identity.peer_id}", identity=identity, transport={"number": 5})
        await trio.sleep(20)
        assert peer.links == {}


async def test_peers_of_another_mesh_refuse_each_other(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap", mesh="one")
        node = await here.add("node", bootstrap, mesh="two")
        await trio.sleep(11)
        assert node.links == {}
        assert bootstrap.links == {}
        assert any("'one'" in line and "'two'" in line for line in node.trail)
        assert any("--mesh" in sentence for sentence in node.trail.explain())


async def test_an_open_mesh_refuses_public_addresses(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        far = await here.add("node", bootstrap, transport={"seen_as": "/ip4/8.8.8.8/tcp/4001"})
        near = await here.add("node", bootstrap, transport={"seen_as": "/ip4/192.168.1.5/tcp/4001"})
        await trio.sleep(5)
        assert set(bootstrap.links) == {near.peer_id}
        assert any("this mesh is open" in line for line in far.trail)
        public = await here.add("bootstrap", transport={"seen_as": "8.8.8.8:4001"})
        node = await here.add("node", public)
        assert node.links == {}
        assert any("public address" in sentence for sentence in node.trail.explain())


# Death, leaving, coming back


async def test_a_killed_node_is_gone_within_three_seconds_and_so_are_its_requests(autojump_clock):
    async with town() as here:
        service = Service(gate=trio.Event())
        service.gate = trio.Event()
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap, service=service)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        events = []
        gateway.registry.subscribe(lambda event: events.append((event.kind, event.peer.peer_id)))

        async def lost():
            with pytest.raises(Unavailable) as caught:
                await gateway.links[node.peer_id].infer(ask(), lambda _: None)
            assert caught.value.code == "link_lost"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost)
            await trio.sleep(1)
            here.kill(node)
        assert await until(lambda: not served(gateway)) <= 3
        assert ("left", node.peer_id) in events
        assert gateway.registry.catalog() == []


async def test_a_hung_node_is_gone_after_three_seconds_and_comes_back(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        await trio.sleep(7)
        here.network.hang(node.peer_id)
        assert await until(lambda: not served(gateway)) <= 3.1
        assert gateway.registry.peers[node.peer_id].link is None
        await trio.sleep(10)
        here.network.resume(node.peer_id)
        await until(lambda: served(gateway) and bootstrap.peer_id in node.links, limit=40)


async def test_a_dead_node_is_forgotten_when_its_record_expires(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        gateways = [await here.add("gateway", bootstrap) for _ in range(3)]
        await until(lambda: all(served(gateway) for gateway in gateways))
        here.kill(node)
        await trio.sleep(RECORD_TTL - 10)
        late = await here.add("gateway", bootstrap)
        gateways.append(late)
        # Gateways that know it in turn tell others; the ages keep that from going on for ever.
        await trio.sleep(RECORD_TTL * 0.6)
        assert all(node.peer_id not in peer.registry.peers for peer in [*gateways, bootstrap])
        assert any("could not be reached" in sentence or node.peer_id in sentence for sentence in late.trail)


async def test_leaving_is_known_at_once_and_lets_requests_finish(autojump_clock):
    async with town() as here:
        service = Service()
        service.gate = trio.Event()
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap, service=service)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        link, events = gateway.links[node.peer_id], []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.infer, ask(), events.append)
            await trio.sleep(1)
            started = trio.current_time()
            await node.leave()
            assert await until(lambda: not served(gateway)) <= 0.2
            assert trio.current_time() - started < 1
            with pytest.raises(Unavailable):
                await link.infer(ask(), events.append)
            await trio.sleep(60)
            assert served(gateway) == set()
            assert node.peer_id not in gateway.registry.peers
            service.gate.set()
        assert events == [DONE]


async def test_close_ends_every_link_after_its_goodbye_was_read(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        await node.close("done for today")
        here.scopes[node.instance].cancel()
        assert node.links == {}
        await until(lambda: node.peer_id not in bootstrap.registry.peers and node.peer_id not in gateway.registry.peers)


async def test_a_peer_that_left_takes_no_links(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        await bootstrap.leave()
        node = await here.add("node", bootstrap)
        assert node.links == {}
        assert any("leaving" in line for line in node.trail)


async def test_a_restarted_bootstrap_is_dialled_again(autojump_clock):
    async with town() as here:
        identity = Identity.generate()
        bootstrap = await here.add("bootstrap", identity=identity, transport={"number": 9})
        node = await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        here.kill(bootstrap)
        await trio.sleep(200)
        assert served(gateway) == {node.peer_id}, "what runs needs no bootstrap"
        again = await here.add("bootstrap", identity=identity, transport={"number": 9})
        await until(lambda: set(again.links) == {node.peer_id, gateway.peer_id}, limit=31)
        newcomer = await here.add("gateway", again)
        await until(lambda: served(newcomer) == {node.peer_id}, limit=3)


async def test_a_restarted_node_serves_again_from_another_address(autojump_clock):
    async with town() as here:
        identity = Identity.generate()
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap, identity=identity)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        here.kill(node)
        await until(lambda: not served(gateway))
        await trio.sleep(20)
        await here.add("node", bootstrap, identity=identity)
        await until(lambda: served(gateway) == {identity.peer_id}, limit=3)


async def test_a_partition_heals(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        here.network.partition(gateway.peer_id, node.peer_id)
        assert await until(lambda: not served(gateway)) <= 3.1
        assert bootstrap.peer_id in gateway.links
        await trio.sleep(60)
        here.network.heal(gateway.peer_id, node.peer_id)
        await until(lambda: served(gateway), limit=40)


async def test_two_processes_with_one_identity_are_named_and_the_newer_stays(autojump_clock, caplog):
    async with town() as here:
        identity = Identity.generate()
        bootstrap = await here.add("bootstrap")
        older = await here.add("node", bootstrap, identity=identity)
        newer = await here.add("node", bootstrap, identity=identity)
        await until(lambda: bootstrap.links[identity.peer_id].hello.instance == newer.instance, limit=2)
        await until(lambda: bootstrap.peer_id not in older.links, limit=5)
        assert "--state-dir" in caplog.text
        assert identity.peer_id in caplog.text


@pytest.mark.parametrize("swapped", [False, True])
async def test_two_that_dial_each_other_keep_one_link(autojump_clock, swapped):
    async with town(latency=0.02) as here:
        identities = sorted((Identity.generate(), Identity.generate()), key=lambda one: one.peer_id, reverse=swapped)
        first, second = (f"/memory/{n}/p2p/{one.peer_id}" for n, one in zip((51, 52), identities, strict=True))
        one = await here.add("bootstrap", second, identity=identities[0], transport={"number": 51}, ready=False)
        two = await here.add("bootstrap", first, identity=identities[1], transport={"number": 52}, ready=False)
        await until(lambda: one.links and two.links, limit=3)
        await trio.sleep(60)
        assert one.links[two.peer_id].dialled == (one.peer_id < two.peer_id)
        assert two.links[one.peer_id].dialled == (two.peer_id < one.peer_id)
        assert len([channel for channel in here.transports[one.instance]._channels if not channel.closed]) == 1
        assert all("duplicate" not in line for line in (*one.trail, *two.trail))


# What peers say of themselves


async def test_a_change_of_state_is_known_at_once(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        await trio.sleep(0.35)
        changes = []
        gateway.registry.subscribe(lambda event: changes.append((event.kind, event.peer.models[0].state)))
        node.announce([MODEL], {"m": ModelLoad("failed")})
        await trio.sleep(0.05)
        assert changes == [("changed", "failed")]
        assert gateway.registry.catalog()[0].state == "failed"
        node.announce([MODEL], {"m": ModelLoad("failed", waiting=3)})
        await trio.sleep(0.05)
        assert gateway.links[node.peer_id].load["m"].waiting == 0
        await trio.sleep(1)
        assert gateway.links[node.peer_id].load["m"].waiting == 3
        node.announce([MODEL, ModelEntry(id="n", state="ready")], {"m": ModelLoad("ready")})
        await trio.sleep(0.05)
        assert [entry.id for entry in gateway.registry.catalog()] == ["m", "n"]


async def test_a_record_is_issued_again_while_its_peer_lives(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        await until(lambda: node.peer_id in bootstrap.registry.peers)
        before = bootstrap.registry.peers[node.peer_id].record.sequence
        await trio.sleep(RECORD_TTL * 3)
        assert bootstrap.registry.peers[node.peer_id].record.sequence >= before + 8


async def test_everybody_hears_of_new_addresses_soon_and_nobody_of_the_same_ones(autojump_clock, monkeypatch):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        await until(lambda: node.peer_id in bootstrap.registry.peers)

        def told() -> NodeRecord:
            return bootstrap.registry.peers[node.peer_id].record

        first = told()
        late = f"/ip4/10.1.2.3/tcp/4001/p2p/{node.peer_id}"
        before = node.addresses
        listening = type(node._transport)
        monkeypatch.setattr(listening, "addresses", property(lambda self: [*before, late] if self is node._transport else before))
        await until(lambda: told().addresses == [*before, late], limit=5)
        monkeypatch.undo()
        await until(lambda: told().addresses == before, limit=5)
        last = told().sequence
        await trio.sleep(10)
        assert told().sequence == last > first.sequence


async def test_a_clock_that_went_back_is_overcome(autojump_clock, monkeypatch):
    async with town() as here:
        identity = Identity.generate()
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap, identity=identity)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        here.kill(node)
        await trio.sleep(1)
        monkeypatch.setattr("mesh.own_record.time.time", lambda: 1_000.0)
        again = await here.add("node", bootstrap, identity=identity)
        again.announce([MODEL, ModelEntry(id="new", state="ready")], {})
        await until(lambda: [entry.id for entry in gateway.registry.catalog()] == ["m", "new"], limit=5)


async def test_more_models_than_fit_a_record_are_refused_and_the_peer_goes_on(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        many = [ModelEntry(id=secrets.token_hex(100)) for _ in range(100)]
        with pytest.raises(Misconfigured, match="fewer models"):
            node.announce(many, {})
        await trio.sleep(RECORD_TTL)
        assert [entry.id for entry in bootstrap.registry.peers[node.peer_id].record.models] == ["m"]


# What a bad peer may do


def hello_of(identity: Identity) -> Hello:
    record = NodeRecord(
        peer_id=identity.peer_id, sequence=1, issued_at=0, ttl=RECORD_TTL, role="gateway", name="bad", mesh="test", version="0",
        addresses=[],
    )  # fmt: skip
    return Hello(mesh="test", instance="bad", record=seal(identity, record))


def strangers(count: int) -> Iterator[SealedRecord]:
    for number in range(count):
        identity = Identity.generate()
        address = f"/memory/{number + 1000}/p2p/{identity.peer_id}"
        yield seal(
            identity,
            NodeRecord(
                peer_id=identity.peer_id, sequence=1, issued_at=0, ttl=RECORD_TTL, role="node", name="x", mesh="test",
                version="0", addresses=[address],
            ),
        )  # fmt: skip


@asynccontextmanager
async def intruder(here: Town, peer: Peer) -> AsyncIterator[Any]:
    """A channel to `peer` on which hello was said."""
    identity = Identity.generate()
    medium = MemoryTransport(identity, here.network)

    async def ignore(channel):
        channel.abort()

    async with trio.open_nursery() as nursery:
        await nursery.start(medium.run, ignore)
        channel = await medium.dial(peer.addresses)
        await channel.send_all(frame(join([encode(hello_of(identity))])))
        await until(lambda: identity.peer_id in peer.links)
        yield channel
        nursery.cancel_scope.cancel()


async def test_bad_records_do_no_harm(autojump_clock):
    async with town() as here:
        gateway = await here.add("gateway")
        victim = Identity.generate()
        good = next(strangers(1))
        lie = msgspec.structs.replace(open_record(good), peer_id=victim.peer_id)
        forged = SealedRecord(msgspec.msgpack.encode(lie), good.signature)
        async with intruder(here, gateway) as channel:
            records = [
                forged,
                SealedRecord(b"\xc1", bytes(64)),
                SealedRecord(b"", b""),
                SealedRecord(b"\x91" * 4000, bytes(64)),
                good,
            ]
            await channel.send_all(frame(join([encode(Records(records, [-5, 2**40]))])))
            await until(lambda: open_record(good).peer_id in gateway.registry.peers, limit=2)
            assert victim.peer_id not in gateway.registry.peers


async def test_a_flood_of_strangers_is_bounded(autojump_clock, monkeypatch):
    monkeypatch.setattr("mesh.registry.MAX_PEERS", 1000)
    async with town() as here:
        gateway = await here.add("gateway")
        async with intruder(here, gateway) as channel:
            for _ in range(2):
                records = list(strangers(700))
                for start in range(0, 700, 350):
                    await channel.send_all(frame(join([encode(Records(records[start : start + 350]))])))
            await trio.sleep(2)
            assert len(gateway.registry.peers) <= 1001
            await trio.sleep(2 * RECORD_TTL)
        await trio.sleep(RECORD_TTL)
        assert gateway.registry.peers == {}
        assert gateway._dialler._targets == {}


async def test_garbage_on_a_link_ends_that_link_alone(autojump_clock, caplog):
    async with town() as here:
        gateway = await here.add("gateway")
        node = await here.add("node", discovery=None)
        async with intruder(here, gateway) as channel, intruder(here, node) as other:
            await channel.send_all(b"\xff" * 100)
            await other.send_all(frame(b"\xc1"))
            await trio.sleep(1)
            assert gateway.links == {}
            assert node.links == {}
        bootstrap = await here.add("gateway", discovery=hearing(Heard(node.peer_id, node.addresses)))
        await until(lambda: served(bootstrap))


async def test_an_error_of_ours_in_a_link_is_logged_and_ends_it_alone(autojump_clock, caplog, monkeypatch):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        monkeypatch.setattr(bootstrap._exchange, "greet", lambda _link: 1 / 0)
        await here.add("node", bootstrap)
        await trio.sleep(1)
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        with caplog.at_level(logging.ERROR):
            newcomer = await here.add("node", bootstrap)
        assert bootstrap.peer_id in newcomer.links
