"""What is asked of the table for others: what is missing, bounded, and not again at once."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
import trio

from mesh.discovery import finder as module
from mesh.discovery.finder import Finder
from mesh.identity import Identity
from mesh.messages.record import ModelEntry, NodeRecord
from mesh.record import open_record, seal
from mesh.registry import Registry


def record_of(identity: Identity, *models: str):
    record = NodeRecord(
        peer_id=identity.peer_id,
        sequence=1,
        issued_at=0,
        ttl=120,
        role="node",
        name="x",
        mesh="ours",
        version="1",
        addresses=[],
        models=[ModelEntry(id=model, state="ready") for model in models],
    )
    return seal(identity, record)


@dataclass
class Table:
    peers: list = field(default_factory=list)
    records: dict = field(default_factory=dict)
    offers: dict = field(default_factory=dict)
    asked: Counter = field(default_factory=Counter)

    async def record(self, peer_id):
        self.asked[peer_id] += 1
        await trio.sleep(0.1)
        return self.records.get(peer_id)

    async def providers(self, model):
        self.asked[model] += 1
        await trio.sleep(0.1)
        return self.offers.get(model, [])


class World:
    def __init__(self) -> None:
        self.table = Table()
        self.registry = Registry(Identity.generate().peer_id, mesh="ours")
        self.finder = Finder(self.table, self.registry, self.registry.learn)

    def node(self, *models: str, inside: bool = True) -> str:
        identity = Identity.generate()
        self.table.records[identity.peer_id] = record_of(identity, *models)
        if inside:
            self.table.peers.append(identity.peer_id)
        return identity.peer_id

    def link(self, peer_id: str) -> None:
        sealed = self.table.records[peer_id]
        hello = SimpleNamespace(record=sealed)
        record, closed = open_record(sealed), trio.Event()
        link = SimpleNamespace(peer_id=peer_id, hello=hello, record=record, load={}, leaving=False, closed=closed)
        self.registry.linked(link)


@pytest.fixture
async def world(nursery):
    built = World()
    nursery.start_soon(built.finder.run)
    return built


async def test_it_learns_of_those_in_the_table(autojump_clock, world):
    nodes = {world.node("m") for _ in range(10)}
    world.node("m", inside=False)
    world.finder.look()
    await trio.sleep(5)
    assert set(world.registry.peers) == nodes


async def test_what_is_not_found_is_not_asked_for_all_the_time(autojump_clock, world):
    lost = Identity.generate().peer_id
    world.table.peers.append(lost)
    for _ in range(10):
        world.finder.look()
        await trio.sleep(1)
    assert world.table.asked[lost] == 1
    await trio.sleep(module.LOOK_AGAIN)
    assert world.table.asked[lost] == 2


async def test_one_turn_is_bounded(autojump_clock, world, monkeypatch):
    monkeypatch.setattr(module, "MAX_FETCHED", 3)
    for _ in range(8):
        world.node("m")
    world.finder.look()
    await trio.sleep(module.TURN / 2)
    assert len(world.registry.peers) == 3
    await trio.sleep(module.TURN)
    assert len(world.registry.peers) == 6


async def test_models_with_few_nodes_are_looked_for(autojump_clock, world):
    first, second = world.node("rare", "common"), world.node("common")
    outside = world.node("rare", inside=False)
    world.table.offers["rare"] = [first, outside]
    for peer_id in (first, second):
        world.link(peer_id)
    world.finder.look()
    await trio.sleep(5)
    assert outside in world.registry.peers
    assert world.table.asked["rare"] == 1
    assert world.table.asked["common"] == 0


async def test_a_model_that_somebody_asks_for_is_looked_for_once(autojump_clock, world, monkeypatch):
    monkeypatch.setattr(module, "MAX_SOUGHT", 5)
    outside = world.node("wanted", inside=False)
    world.node("other")
    world.table.offers["wanted"] = [outside]
    for _ in range(20):
        world.finder.seek("wanted")
        await trio.sleep(0.1)
    await trio.sleep(5)
    assert outside in world.registry.peers
    assert world.table.asked["wanted"] == 1
    for number in range(50):
        world.finder.seek(f"unknown {number}")
    await trio.sleep(5)
    assert sum(name.startswith("unknown") for name in world.table.asked) == 5


async def test_it_counts_those_whom_the_table_brought(autojump_clock, world):
    found, known = world.node("m"), world.node("m", inside=False)
    world.finder.look()
    await trio.sleep(5)
    for peer_id in (found, known, found):
        world.finder.joined(peer_id)
    assert world.finder.brought == 1


async def test_what_it_remembers_is_bounded(autojump_clock, world, monkeypatch):
    monkeypatch.setattr(module, "MAX_REMEMBERED", 4)
    for _ in range(10):
        world.node("m")
    world.finder.look()
    await trio.sleep(5)
    assert len(world.registry.peers) == 10
    assert len(world.finder._asked) == len(world.finder._found) == 4
