"""What a multiaddr means to us.

1. An address is an IP or a DNS name, a TCP port, perhaps `/ws`, and to be dialled the peer id. Everything else is refused.
2. Only IP addresses are listened on. `0.0.0.0` and `::` stand for every interface that other machines can reach.
3. Bridges of containers and virtual machines are never advertised: on another machine the same address is somebody else.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]  # it ships no types
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from mesh.identity import PeerId, public_key_of

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_LENGTH = 512
"""Characters of an address that anybody may send us. A DNS name has 253, a peer id 52."""

_IP = ("ip4", "ip6")
_DNS = ("dns", "dns4", "dns6")
_BRIDGES = ("docker", "br-", "veth", "virbr", "podman")


@dataclass(frozen=True)
class Address:
    """One parsed multiaddr."""

    kind: str
    """`ip4`, `ip6`, `dns`, `dns4` or `dns6`."""
    host: str
    port: int
    websocket: bool
    peer_id: PeerId | None

    @classmethod
    def parse(cls, text: str) -> Address:
        """Raises ValueError, which says what is wrong with the address."""
        if len(text) > MAX_LENGTH:
            raise ValueError("it is too long")
        try:
            parts = [(protocol.name, value) for protocol, value in Multiaddr(text).items()]
        except (MultiaddrError, ValueError, KeyError, TypeError) as error:
            raise ValueError("it is not a multiaddr") from error
        names = [name for name, _ in parts]
        peer_id = None
        if names[-1:] == ["p2p"]:
            peer_id = PeerId(str(parts.pop()[1]))
            public_key_of(peer_id)
            names.pop()
        if len(names) not in (2, 3) or names[0] not in _IP + _DNS or names[1] != "tcp" or names[2:] not in ([], ["ws"]):
            raise ValueError("only /ip4, /ip6 or /dns with /tcp and perhaps /ws is supported")
        return cls(names[0], str(parts[0][1]), int(str(parts[1][1])), names[2:] == ["ws"], peer_id)

    @property
    def family(self) -> socket.AddressFamily:
        """Of the socket that reaches it."""
        families = {"ip4": socket.AF_INET, "dns4": socket.AF_INET, "ip6": socket.AF_INET6, "dns6": socket.AF_INET6}
        return families.get(self.kind, socket.AF_UNSPEC)

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach it."""
        return self.kind in _IP and ipaddress.ip_address(self.host).is_loopback

    def __str__(self) -> str:
        return f"/{self.kind}/{self.host}/tcp/{self.port}{'/ws' if self.websocket else ''}" + (
            f"/p2p/{self.peer_id}" if self.peer_id else ""
        )


def remote_multiaddr(host: str, port: int, *, websocket: bool = False) -> str:
    """The multiaddr of the other end of a socket."""
    kind = "ip6" if ":" in host else "ip4"
    return f"/{kind}/{host}/tcp/{port}{'/ws' if websocket else ''}"


def reachable_hosts(host: str) -> list[str]:
    """The addresses that a listener on `host` can be dialled at, loopback first, then private ones."""
    listening = ipaddress.ip_address(host)
    hosts = interface_hosts(listening.version) if listening.is_unspecified else [host]
    return sorted(hosts, key=_distance)


def interface_hosts(version: int) -> list[str]:
    """The addresses of this machine's interfaces that are up, without bridges and IPv6 link-local ones."""
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = (
        entry.address
        for name, entries in psutil.net_if_addrs().items()
        if name in up and not name.startswith(_BRIDGES)
        for entry in entries
        if entry.family == family
    )
    # A link-local IPv6 address means nothing without the name of an interface, which differs on the other machine.
    return [host for host in found if "%" not in host and not (version == 6 and ipaddress.ip_address(host).is_link_local)]


def best_first(addresses: Iterable[Address]) -> list[Address]:
    """In the order to dial: near before far, but loopback last when the peer is clearly on another machine."""
    wanted = list(dict.fromkeys(addresses))
    ours = {host for version in (4, 6) for host in interface_hosts(version)}
    outside = [address.host for address in wanted if address.kind in _IP and _distance(address.host)]
    elsewhere = bool(outside) and not ours.intersection(outside)
    return sorted(wanted, key=lambda address: _order(address, elsewhere=elsewhere))


def _order(address: Address, *, elsewhere: bool) -> tuple[int, bool]:
    distance = 2 if address.kind in _DNS else _distance(address.host)
    return (3 if elsewhere and distance == 0 else distance, address.websocket)


def _distance(host: str) -> int:
    address = ipaddress.ip_address(host)
    if address.is_loopback:
        return 0
    return 1 if address.is_private or address.is_link_local else 2
