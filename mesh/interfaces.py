"""The network interfaces of this machine, as far as other machines can reach it.

Bridges of containers and virtual machines are left out: on another machine the same address is somebody else. Who wants one names
its address, by listening on it.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]  # it ships no types

if TYPE_CHECKING:
    from collections.abc import Collection

_BRIDGES = (
    *("docker", "br-", "veth", "virbr", "vnet", "podman", "cni", "flannel", "cali", "lxc", "lxdbr", "incusbr"),
    *("vmnet", "vboxnet"),
)


@dataclass(frozen=True)
class Interface:
    """One address of an interface that is up. `version` is that of the IP address."""

    name: str
    host: str
    version: int


def interfaces(asked: Collection[str] = ()) -> list[Interface]:
    """Loopback first, then private addresses, then others; IPv6 link-local ones, which need a zone, are left out.

    Of a bridge only the addresses that were `asked` for are there.
    """
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = [
        Interface(name, entry.address, 4 if entry.family == socket.AF_INET else 6)
        for name, entries in psutil.net_if_addrs().items()
        if name in up
        for entry in entries
        if not name.startswith(_BRIDGES) or entry.address in asked
        if entry.family in (socket.AF_INET, socket.AF_INET6) and "%" not in entry.address
    ]
    return sorted(found, key=lambda interface: distance(interface.host))


def distance(host: str) -> int:
    """0 for this machine, 1 for a private network, 2 for anywhere else."""
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        return 0
    return 1 if address.is_private or address.is_link_local else 2
