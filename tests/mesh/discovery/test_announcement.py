from __future__ import annotations

import random

import pytest

from mesh.discovery.announcement import MAX_ADDRESSES, MAX_ENTRY, MAX_TEXT, Found, decode, encode
from mesh.errors import Misconfigured
from mesh.identity import Identity

PEER = Identity.from_seed(bytes(32)).peer_id
OTHER = Identity.from_seed(bytes([1] * 32)).peer_id
ADDRESS = f"/ip4/192.168.1.5/tcp/4001/p2p/{PEER}"


def text(*entries: str) -> bytes:
    return b"".join(bytes([len(entry.encode())]) + entry.encode() for entry in entries)


def test_an_announcement_reads_as_it_was_written():
    announced = Found(PEER, [ADDRESS, f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}"], "default", "node")
    assert decode(encode(announced)) == announced


def test_every_address_has_an_entry_of_its_own_as_libp2p_wants():
    encoded = encode(Found(PEER, [ADDRESS], "default", "node"))
    assert bytes([len("dnsaddr=" + ADDRESS)]) + b"dnsaddr=" + ADDRESS.encode() in encoded


def test_too_many_and_too_long_addresses_are_left_out():
    many = [f"/ip4/10.0.0.{n}/tcp/4001/p2p/{PEER}" for n in range(50)]
    long = f"/dns/{'a' * 250}/tcp/4001/p2p/{PEER}"
    found = decode(encode(Found(PEER, [long, *many], "default", "node")))
    assert found is not None
    assert found.addresses == many[:MAX_ADDRESSES]


def test_a_mesh_name_that_does_not_fit_is_refused():
    assert decode(encode(Found(PEER, [ADDRESS], "m" * (MAX_ENTRY - 5), "node"))) is not None
    with pytest.raises(Misconfigured, match="too long"):
        encode(Found(PEER, [ADDRESS], "m" * (MAX_ENTRY - 4), "node"))


def test_no_more_addresses_are_read_than_we_would_write():
    entries = [f"dnsaddr=/ip4/10.0.0.{n}/tcp/4001/p2p/{PEER}" for n in range(MAX_ADDRESSES + 5)]
    found = decode(text("mesh=default", "role=node", *entries))
    assert found is not None
    assert len(found.addresses) == MAX_ADDRESSES


@pytest.mark.parametrize(
    "malformed",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"\x00", id="an empty entry only"),
        pytest.param(text("mesh=default", "role=node"), id="no address"),
        pytest.param(text(f"dnsaddr={ADDRESS}"), id="a libp2p peer of another kind"),
        pytest.param(text("mesh=default", f"dnsaddr={ADDRESS}"), id="no role"),
        pytest.param(text("mesh=a", "mesh=b", "role=node", f"dnsaddr={ADDRESS}"), id="two meshes"),
        pytest.param(text("mesh=default", "role=node", f"dnsaddr={ADDRESS}")[:-1], id="cut off"),
        pytest.param(text("mesh=default", "role=node", "dnsaddr=/ip4/10.0.0.1/tcp/1"), id="no peer id"),
        pytest.param(text("mesh=default", "role=node", "dnsaddr=/ip4/10.0.0.1/tcp/1/p2p/nobody"), id="a bad peer id"),
        pytest.param(text("mesh=default", "role=node", f"dnsaddr=10.0.0.1/p2p/{PEER}"), id="not a multiaddr"),
        pytest.param(text("mesh=default", "role=node", f"dnsaddr=/a\n/p2p/{PEER}"), id="a line break"),
        pytest.param(
            text("mesh=default", "role=node", f"dnsaddr={ADDRESS}", f"dnsaddr=/ip4/1/tcp/1/p2p/{OTHER}"), id="two peers"
        ),
        pytest.param(text("mesh=default", "role=node", f"dnsaddr={ADDRESS}") + b"\x02\xff\xfe", id="not UTF-8"),
        pytest.param(text("mesh=default", "role=node", f"dnsaddr={ADDRESS}", *["x" * 200] * 20), id="too large"),
    ],
)
def test_a_malformed_announcement_is_void(malformed):
    assert decode(malformed) is None


def test_the_size_bound_is_what_the_last_case_meets():
    padding = ["x" * 200] * 20
    assert len(text(*padding)) < MAX_TEXT < len(text("mesh=default", "role=node", f"dnsaddr={ADDRESS}", *padding))


def test_random_bytes_never_raise():
    generator = random.Random(7)
    good = bytearray(encode(Found(PEER, [ADDRESS], "default", "node")))
    for _ in range(3000):
        damaged = bytearray(good)
        for _ in range(generator.randint(1, 6)):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        decode(bytes(damaged))
        decode(generator.randbytes(generator.randint(0, 300)))
