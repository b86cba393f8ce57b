"""Addresses that others tell: bounded, checked, and second to what a peer says itself."""

from __future__ import annotations

import pytest
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mesh.addresses import is_near
from mesh.identity import Identity
from mesh.transport.libp2p.kad import book as module
from mesh.transport.libp2p.kad.book import AddressBook

PEER = Identity.from_seed(b"peer" * 8).peer_id
OTHER = Identity.from_seed(b"other" * 6 + b"..").peer_id


def book(known=()) -> AddressBook:
    return AddressBook(lambda _peer_id: known, is_near)


def test_its_own_word_comes_first_and_the_latest_hearsay_next():
    sure = f"/ip4/10.0.0.1/tcp/1/p2p/{PEER}"
    found = book([sure])
    found.hear(PEER, ["/ip4/10.0.0.2/tcp/2", sure])
    found.add_addrs(ID.from_base58(PEER), [Multiaddr("/ip4/10.0.0.3/tcp/3")])
    assert found.addresses(PEER) == [sure, f"/ip4/10.0.0.3/tcp/3/p2p/{PEER}", f"/ip4/10.0.0.2/tcp/2/p2p/{PEER}"]
    assert str(found.addrs(ID.from_base58(PEER))[0]) == "/ip4/10.0.0.1/tcp/1"


@pytest.mark.parametrize(
    "address",
    [f"/ip4/10.0.0.1/tcp/1/p2p/{OTHER}", "/ip4/8.8.8.8/tcp/1", "/ip4/10.0.0.1/udp/1", "rubbish", "", "/ip4/10.0.0.1/tcp/1/p2p/x"],
)
def test_what_cannot_or_must_not_be_dialled_is_not_kept(address):
    found = book()
    found.hear(PEER, [address])
    assert found.addresses(PEER) == []
    with pytest.raises(LookupError):
        found.addrs(ID.from_base58(PEER))


def test_it_is_bounded(monkeypatch):
    monkeypatch.setattr(module, "MAX_PEERS", 3)
    found = book()
    for number in range(50):
        found.hear(PEER, [f"/ip4/10.0.0.1/tcp/{number + 1}"])
    assert len(found.addresses(PEER)) == module.MAX_ADDRESSES
    for _ in range(5):
        found.hear(Identity.generate().peer_id, ["/ip4/10.0.0.1/tcp/1"])
    assert len(found.peer_ids()) == 3
    assert found.addresses(PEER) == []
