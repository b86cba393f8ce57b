"""Which nodes are linked: the decision alone, and a gateway in a mesh of five hundred."""

from __future__ import annotations

import random
import zlib
from typing import Any

import pytest
import trio

from mesh.best_links import TURN, Known, choose, extras, full
from mesh.errors import Unavailable
from mesh.exchange import ASKS
from mesh.identity import Identity, PeerId
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry
from mesh.peer import Peer, PeerSettings
from mesh.transport.memory import MemoryNetwork, MemoryTransport


def node(name: str, *models: str, **known: Any) -> Known:
    return Known(peer_id=PeerId(name), models=frozenset(models or ("m",)), order=zlib.crc32(name.encode()), **known)


def test_nobody_is_dialled_beyond_the_limit():
    nodes = [node(f"{number:03}") for number in range(500)]
    choice = choose(nodes, 64)
    assert len(set(choice.dial)) == 64
    assert choice.surplus == []


def test_full_models_dial_nobody_and_others_do():
    linked = [node(f"a{number}", "a", linked=True) for number in range(3)]
    assert choose([*linked, node("idle-a", "a"), node("both", "a", "b")], 3).dial == ["both"]
    assert choose([*linked, node("idle-a", "a")], 3).dial == []


def test_a_link_counts_for_all_models_of_its_node():
    assert choose([node("one", "a", "b", linked=True), node("two", "b")], 1).dial == []


def test_a_failing_node_makes_room_and_is_tried_again_when_there_is_no_other():
    assert choose([node("bad", dialling=True, failing=True), node("good")], 1).dial == ["good"]
    assert choose([node("bad", dialling=True, failing=True), node("good")], 1).surplus == ["bad"]
    assert choose([node("bad", failing=True)], 1).dial == ["bad"]


def test_who_waited_longest_is_dialled_first():
    assert choose([node("again", tried=5.0), node("new"), node("older", tried=3.0)], 2).dial == ["new", "older"]


def test_what_is_being_dialled_is_not_counted_twice():
    assert choose([node("a", dialling=True), node("b")], 1).dial == []


def test_the_slowest_links_are_the_surplus():
    links = [node("slow", linked=True, rtt=0.2), node("fast", linked=True, rtt=0.01), node("unknown", linked=True)]
    assert choose(links, 1).surplus == ["slow", "unknown"]
    assert choose(links, 2).surplus == ["unknown"]
    assert choose(links, 3).surplus == []


def test_each_full_model_gets_one_extra_who_waited_longest():
    nodes = [node("l", linked=True), node("recent", tried=9.0), node("older", tried=5.0), node("broken", failing=True)]
    assert extras(nodes, 1) == ["older"]
    assert extras(nodes, 2) == []


def test_the_choice_depends_on_the_nodes_and_not_on_their_order():
    draw = random.Random(7)
    names = ("a", "b", "c")
    nodes = [
        node(f"{number}", *draw.sample(names, draw.randint(1, 3)), linked=draw.random() < 0.3, failing=draw.random() < 0.2)
        for number in range(300)
    ]
    expected = choose(nodes, 20)
    draw.shuffle(nodes)
    assert choose(nodes, 20) == expected
    kept = [one for one in nodes if one.peer_id in expected.dial or (one.linked and one.peer_id not in expected.surplus)]
    for model in names:
        assert sum(model in one.models for one in kept) >= 20


def test_whoever_serves_only_full_models_may_be_left_out():
    draw = random.Random(11)
    names = ("a", "b", "c", "d")
    for limit in (1, 5, 20):
        nodes = [
            node(
                f"{number}",
                *draw.sample(names, draw.randint(1, 3)),
                linked=draw.random() < 0.1,
                dialling=draw.random() < 0.1,
                failing=draw.random() < 0.2,
                rtt=draw.choice([None, 0.1, 0.2]),
            )
            for number in range(200)
        ]
        active = [one for one in nodes if one.linked or one.dialling]
        done = full(active, limit)
        kept = [one for one in nodes if one in active or not one.models <= done]
        assert choose(kept, limit) == choose(nodes, limit)
    assert full([node("f", "a", dialling=True, failing=True)], 1) == set(), "who fails fills nothing"


# Over the memory network


class Silence:
    async def infer(self, request: Any, emit: Any) -> None:
        raise Unavailable("not here")


async def start(nursery: trio.Nursery, network: MemoryNetwork, role: Any, *bootstrap: str, **settings: Any) -> Peer:
    identity = Identity.generate()
    fields = PeerSettings(identity=identity, role=role, name=role, bootstrap=list(bootstrap), **settings)
    peer = Peer(fields, MemoryTransport(identity, network), Silence())
    if role == "node":
        peer.announce([ModelEntry(id="m", state="ready")], {"m": ModelLoad("ready")})
    await nursery.start(peer.run)
    return peer


def linked_nodes(peer: Peer) -> set[str]:
    return {view.peer_id for view in peer.registry.nodes()}


@pytest.mark.timeout(120)
async def test_a_gateway_among_five_hundred_nodes_keeps_its_few(autojump_clock):
    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        bootstrap = await start(nursery, network, "bootstrap")
        nodes = {(await start(nursery, network, "node", bootstrap.addresses[0])).peer_id for _ in range(500)}
        gateways = [
            await start(nursery, network, "gateway", bootstrap.addresses[0], links_per_model=limit) for limit in (64, 64, 8)
        ]
        with trio.fail_after(30):
            while [len(linked_nodes(gateway)) for gateway in gateways] != [64, 64, 8]:  # noqa: ASYNC110 - nobody tells of it
                await trio.sleep(0.1)
        assert all(
            nodes == {one for one, view in gateway.registry.peers.items() if view.record.role == "node"} for gateway in gateways
        )
        assert linked_nodes(gateways[0]) != linked_nodes(gateways[1]), "all gateways crowd on the same nodes"
        nursery.cancel_scope.cancel()


async def test_a_lost_node_is_replaced_and_the_worst_gives_way_now_and_then(autojump_clock):
    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        bootstrap = await start(nursery, network, "bootstrap")
        nodes = [await start(nursery, network, "node", bootstrap.addresses[0]) for _ in range(8)]
        gateway = await start(nursery, network, "gateway", bootstrap.addresses[0], links_per_model=3)
        await trio.sleep(2)
        first = linked_nodes(gateway)
        assert len(first) == 3
        network.kill(PeerId(min(first)))
        await trio.sleep(2)
        assert len(linked_nodes(gateway)) == 3
        seen = set(first)
        for _ in range(24):
            await trio.sleep(TURN)
            seen |= linked_nodes(gateway)
            assert 3 <= len(linked_nodes(gateway)) <= 4
        assert seen == {one.peer_id for one in nodes}
        nursery.cancel_scope.cancel()


async def test_a_node_that_asks_hears_of_other_nodes_and_a_plain_one_does_not(autojump_clock):
    network = MemoryNetwork()
    async with trio.open_nursery() as nursery:
        bootstrap = await start(nursery, network, "bootstrap")
        asking = await start(nursery, network, "node", bootstrap.addresses[0], asks=True)
        plain = await start(nursery, network, "node", bootstrap.addresses[0])
        client = await start(nursery, network, "client", bootstrap.addresses[0])
        await trio.sleep(2)
        assert linked_nodes(asking) == {plain.peer_id}
        assert set(plain.links) == {bootstrap.peer_id, asking.peer_id, client.peer_id}
        assert linked_nodes(client) == {asking.peer_id, plain.peer_id}
        assert client.peer_id not in {view.peer_id for view in asking.registry.peers.values() if view.link is None}
        assert bootstrap.links[asking.peer_id].hello.features[0] == ASKS
        nursery.cancel_scope.cancel()
