"""Exchange: records travel in messages of a bounded size, at most MAX_RECORDS of them, the freshest first."""

from __future__ import annotations

import secrets
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from mesh import exchange
from mesh.exchange import ASKS, CHUNK, Exchange
from mesh.identity import Identity
from mesh.messages.record import NodeRecord
from mesh.record import seal
from mesh.registry import Registry

if TYPE_CHECKING:
    from mesh.messages.link import Records


class Time:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def registry(time: Time) -> Registry:
    return Registry(Identity.generate().peer_id, mesh="test", clock=time)


def learn(registry: Registry, role: str = "node", name: str = "n") -> str:
    identity = Identity.generate()
    record = NodeRecord(
        peer_id=identity.peer_id, sequence=1, issued_at=0, ttl=100, role=role, name=name, mesh="test", version="0", addresses=[]
    )
    assert registry.learn(seal(identity, record))
    return identity.peer_id


def link(role: str, *features: str) -> Any:
    sent: list[Records] = []
    record, hello = SimpleNamespace(role=role, sequence=1), SimpleNamespace(features=list(features))
    return SimpleNamespace(peer_id="other", record=record, hello=hello, send=sent.append, sent=sent)


def sizes(message: Records) -> int:
    return sum(len(sealed.payload) + len(sealed.signature) for sealed in message.records)


def test_many_large_records_travel_in_several_messages(registry):
    for _ in range(50):
        learn(registry, name=secrets.token_hex(6_000))
    other = link("gateway")
    Exchange(registry, list).greet(other)
    assert len(other.sent) > 1
    assert all(sizes(message) <= CHUNK and len(message.records) == len(message.ages) for message in other.sent)
    assert sum(len(message.records) for message in other.sent) == 50


def test_a_greeting_has_a_bound_and_tells_the_freshest(registry, time, monkeypatch):
    monkeypatch.setattr(exchange, "MAX_RECORDS", 2)
    learn(registry)
    time.now += 10
    fresh = {learn(registry), learn(registry)}
    other = link("gateway")
    Exchange(registry, list).greet(other)
    (message,) = other.sent
    assert message.ages == [0, 0]
    assert {registry_id(registry, sealed) for sealed in message.records} == fresh


def registry_id(registry: Registry, sealed: Any) -> str:
    return next(view.peer_id for view in registry.peers.values() if view.sealed is sealed)


def test_a_node_hears_of_nodes_only_when_it_asks_them(registry):
    learn(registry, "node")
    learn(registry, "gateway")
    other = link("node")
    Exchange(registry, list).greet(other)
    assert [len(message.records) for message in other.sent] == [1]
    asking = link("node", ASKS)
    Exchange(registry, list).greet(asking)
    assert [len(message.records) for message in asking.sent] == [2]
