"""What strangers give us to keep stays within bounds."""

from __future__ import annotations

import time

import pytest
from libp2p.kad_dht.pb.kademlia_pb2 import Record
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import PeerInfo
from multiaddr import Multiaddr

from mesh.identity import Identity
from mesh.transport.libp2p.kad import stores
from mesh.transport.libp2p.kad.stores import Providers, Values


class Host:
    def get_id(self) -> ID:
        return ID.from_base58(Identity.generate().peer_id)


def peer() -> PeerInfo:
    return PeerInfo(ID.from_base58(Identity.generate().peer_id), [Multiaddr("/ip4/127.0.0.1/tcp/1")])


@pytest.fixture
def clock(monkeypatch):
    now = [time.time()]
    monkeypatch.setattr(time, "time", lambda: now[0])

    def advance(seconds: float) -> None:
        now[0] += seconds

    return advance


def test_the_oldest_value_makes_room_and_a_fresh_one_counts_as_young(monkeypatch):
    monkeypatch.setattr(stores, "MAX_VALUES", 2)
    values = Values(Host(), None)
    for key in (b"1", b"2", b"1", b"3"):
        values.put_record(key, Record(key=key, value=b"v"))
    assert list(values.store) == [b"1", b"3"]


def test_values_expire(clock):
    values = Values(Host(), None)
    values.put_record(b"1", Record(key=b"1", value=b"v"))
    clock(stores.VALUE_TTL - 1)
    assert values.get(b"1") is not None
    clock(2)
    assert values.get(b"1") is None
    assert not values.store


def test_providers_expire(clock):
    providers = Providers(Host())
    old, young = peer(), peer()
    providers.add_provider(b"1", old)
    clock(stores.PROVIDER_TTL - 1)
    providers.add_provider(b"1", young)
    clock(2)
    assert [found.peer_id for found in providers.get_providers(b"1")] == [young.peer_id]


def test_keys_are_bounded_in_all_and_for_each_peer(monkeypatch):
    monkeypatch.setattr(stores, "MAX_KEYS", 4)
    monkeypatch.setattr(stores, "MAX_KEYS_PER_PEER", 2)
    providers = Providers(Host())
    honest, hog = peer(), peer()
    providers.add_provider(b"honest", honest)
    for number in range(10):
        providers.add_provider(b"%d" % number, hog)
    # The hog turned out its own.
    assert set(providers.providers) == {b"honest", b"8", b"9"}
    for number in range(10):
        providers.add_provider(b"%d of many" % number, peer())
    assert len(providers.providers) == 4


def test_providing_again_keeps_one_entry():
    providers = Providers(Host())
    one = peer()
    providers.add_provider(b"1", one)
    providers.add_provider(b"1", one)
    assert len(providers.get_providers(b"1")) == 1
