from __future__ import annotations

import socket
from types import SimpleNamespace

import psutil

from mesh.interfaces import Interface, distance, interfaces


def entry(address: str) -> SimpleNamespace:
    return SimpleNamespace(family=socket.AF_INET6 if ":" in address else socket.AF_INET, address=address)


def test_this_machine_has_loopback():
    assert interfaces()[0].host in ("127.0.0.1", "::1")


def test_bridges_and_what_is_down_and_link_local_are_left_out(monkeypatch):
    bridges = ["docker0", "br-12ab", "veth77", "virbr0", "podman1"]
    found = {
        "wan0": [entry("9.9.9.9")],
        "eth0": [entry("192.168.1.5"), entry("fe80::1%eth0"), SimpleNamespace(family=socket.AF_PACKET, address="00:00")],
        "lo": [entry("127.0.0.1")],
        "eth1": [entry("192.168.2.5")],
        **{name: [entry("172.17.0.1")] for name in bridges},
    }
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {name: SimpleNamespace(isup=name != "eth1") for name in found})
    assert interfaces() == [
        Interface("lo", "127.0.0.1", 4),
        Interface("eth0", "192.168.1.5", 4),
        Interface("wan0", "9.9.9.9", 4),
    ]


def test_the_address_of_a_bridge_is_there_for_who_asks(monkeypatch):
    found = {"lo": [entry("127.0.0.1")], "docker0": [entry("172.17.0.1"), entry("172.17.0.2")]}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    monkeypatch.setattr(psutil, "net_if_stats", lambda: {name: SimpleNamespace(isup=True) for name in found})
    assert [one.name for one in interfaces()] == ["lo"]
    assert interfaces(["172.17.0.1"])[1:] == [Interface("docker0", "172.17.0.1", 4)]


def test_how_far_an_address_is():
    assert [distance(host) for host in ("127.0.0.1", "::1", "10.1.1.1", "169.254.1.1", "fd00::1", "8.8.8.8")] == [
        0,
        0,
        1,
        1,
        1,
        2,
    ]
