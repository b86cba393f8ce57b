from __future__ import annotations

import pytest

from mesh.identity import Identity
from mesh.interfaces import Interface
from mesh.transport.libp2p import addresses
from mesh.transport.libp2p.addresses import MAX_LENGTH, Address, best_first, reachable_hosts, remote_multiaddr

PEER = Identity.from_seed(bytes(32)).peer_id


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """The interfaces of a machine that is not this one."""
    monkeypatch.setattr(
        addresses,
        "interfaces",
        lambda: [
            Interface("lo", "127.0.0.1", 4),
            Interface("lo", "::1", 6),
            Interface("eth0", "192.168.1.5", 4),
            Interface("eth0", "fd00::5", 6),
            Interface("ppp0", "8.8.8.8", 4),
        ],
    )


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/127.0.0.1/tcp/4001",
        "/ip4/127.0.0.1/tcp/4001/ws",
        f"/ip6/::1/tcp/4001/p2p/{PEER}",
        f"/dns4/node.example/tcp/443/ws/p2p/{PEER}",
        f"/dns/node.example/tcp/443/p2p/{PEER}",
    ],
)
def test_an_address_is_written_as_it_was_read(text):
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "node.example:4001",
        f"/p2p/{PEER}",
        "/ip4/127.0.0.1/udp/4001/quic-v1",
        f"/ip4/127.0.0.1/tcp/4001/p2p/{PEER}/p2p-circuit/p2p/{PEER}",
        "/ip4/127.0.0.1/tcp/4001/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N",
        "/ip4/127.0.0.1/tcp/-1",
        "/dnsaddr/node.example",
        "/unix/tmp/socket",
        "/ip4/127.0.0.1/tcp/1" + " " * MAX_LENGTH,
        "/ip4/1.2.3.4\u0000/tcp/1",
    ],
)
def test_everything_else_is_refused_with_a_reason(text):
    with pytest.raises(ValueError, match=r"."):
        Address.parse(text)


def test_every_interface_is_reachable_loopback_first():
    assert reachable_hosts("0.0.0.0") == ["127.0.0.1", "192.168.1.5", "8.8.8.8"]
    assert reachable_hosts("::") == ["::1", "fd00::5"]
    assert reachable_hosts("192.168.1.5") == ["192.168.1.5"]


def order(*hosts: str) -> list[str]:
    return [address.host for address in best_first(Address.parse(f"/ip4/{host}/tcp/1/p2p/{PEER}") for host in hosts)]


def test_a_peer_on_this_machine_is_dialled_by_loopback():
    assert order("8.8.8.8", "192.168.1.5", "127.0.0.1") == ["127.0.0.1", "192.168.1.5", "8.8.8.8"]
    assert order("127.0.0.1") == ["127.0.0.1"]


def test_a_peer_on_another_machine_is_dialled_by_loopback_last():
    assert order("127.0.0.1", "9.9.9.9", "192.168.1.77") == ["192.168.1.77", "9.9.9.9", "127.0.0.1"]


def test_tcp_comes_before_websocket_and_nothing_comes_twice():
    texts = [f"/ip4/10.0.0.1/tcp/1/ws/p2p/{PEER}", f"/ip4/10.0.0.1/tcp/2/p2p/{PEER}"]
    assert [str(address) for address in best_first(Address.parse(text) for text in texts * 2)] == texts[::-1]


def test_the_other_end_of_a_socket_as_a_multiaddr():
    assert remote_multiaddr("10.0.0.1", 5) == "/ip4/10.0.0.1/tcp/5"
    assert remote_multiaddr("fd00::5", 5, websocket=True) == "/ip6/fd00::5/tcp/5/ws"
