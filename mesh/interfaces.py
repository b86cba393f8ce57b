"""The network interfaces of this machine, as far as other machines can reach it.

Bridges of containers and virtual machines are left out: on another machine the same address is somebody else.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass

import psutil  # type: ignore[import-untyped]  # it ships no types

_BRIDGES = ("docker", "br-", "veth", "virbr", "podman")


@dataclass(frozen=True)
class Interface:
    """One address of an interface that is up. `version` is that of the IP address."""

    name: str
    host: str
    version: int


def interfaces() -> list[Interface]:
    """Loopback first, then private addresses, then others; IPv6 link-local ones, which need a zone, are left out."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = [
        Interface(name, entry.address, 4 if entry.family == socket.AF_INET else 6)
        for name, entries in psutil.net_if_addrs().items()
        if name in up and not name.startswith(_BRIDGES)
        for entry in entries
        if entry.family in (socket.AF_INET, socket.AF_INET6) and "%" not in entry.address
    ]
    return sorted(found, key=lambda interface: distance(interface.host))


def distance(host: str) -> int:
    """0 for this machine, 1 for a private network, 2 for anywhere else."""
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        return 0
    return 1 if address.is_private or address.is_link_local else 2
