"""Whose an address is, and whether it is near."""

from __future__ import annotations

import pytest

from mesh.addresses import is_loopback_address, is_near, peer_of
from mesh.identity import Identity

ID = Identity.from_seed(b"\x03" * 32).peer_id


def test_the_peer_at_the_end_of_an_address():
    assert peer_of(f"/ip4/127.0.0.1/tcp/4001/p2p/{ID}") == ID
    assert peer_of(f"/ip4/1.2.3.4/tcp/1/p2p/{Identity.generate().peer_id}/p2p-circuit/p2p/{ID}") == ID


@pytest.mark.parametrize(
    "address", ["", ID, f"/p2p/{ID}", f"x/p2p/{ID}", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/tcp/1/p2p/", "/a/p2p/Qm"]
)
def test_an_address_without_a_peer(address):
    with pytest.raises(ValueError, match=r"p2p|peer id"):
        peer_of(address)


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/127.0.0.1/tcp/1", "/ip4/10.1.2.3/tcp/1/ws", "/ip4/192.168.0.9/tcp/1", "/ip4/172.31.0.1/tcp/1",
        "/ip4/169.254.1.1/tcp/1",
        "/ip6/::1/tcp/1", "/ip6/fd00::1/tcp/1", "/ip6zone/eth0/ip6/fe80::1/tcp/1", "/ip6/::ffff:192.168.1.1/tcp/1",
        "127.0.0.1:80", "[::1]:80", "[fe80::1%eth0]:80", "/memory/4", "", "nonsense",
    ],
)  # fmt: skip
def test_near_addresses(address):
    assert is_near(address)


@pytest.mark.parametrize(
    "address",
    [
        "/ip4/8.8.8.8/tcp/1",
        "/ip4/172.32.0.1/tcp/1",
        "/ip6/2606:4700::1/tcp/1",
        "/ip6/::ffff:8.8.8.8/tcp/1",
        "8.8.8.8:1",
        "[2606:4700::1]:1",
    ],
)
def test_far_addresses(address):
    assert not is_near(address)


def test_addresses_of_this_machine_alone():
    here = ["/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1", "/ip6/::ffff:127.0.0.1/tcp/1", "[::1]:1"]
    others = ["/ip4/10.0.0.1/tcp/1", "/dns/localhost/tcp/1", "/memory/4", "8.8.8.8:1"]
    assert [is_loopback_address(one) for one in here + others] == [True] * 4 + [False] * 4
