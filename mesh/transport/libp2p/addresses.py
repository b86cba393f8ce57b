"""What a multiaddr means to us.

1. An address is an IP or a DNS name, a TCP port, perhaps `/ws`, and to be dialled the peer id. With `/p2p-circuit` and another
   peer id behind that it leads over a relay. Everything else is refused.
2. Only IP addresses are listened on. `0.0.0.0` and `::` stand for every interface that other machines can reach.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio
from multiaddr import Multiaddr
from multiaddr.exceptions import Error as MultiaddrError

from mesh.identity import PeerId, public_key_of
from mesh.interfaces import distance, interfaces

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_LENGTH = 512
"""Characters of an address that anybody may send us. A DNS name has 253, a peer id 52."""

_IP = ("ip4", "ip6")
_DNS = ("dns", "dns4", "dns6")


@dataclass(frozen=True)
class Address:
    """One parsed multiaddr."""

    kind: str
    """`ip4`, `ip6`, `dns`, `dns4` or `dns6`."""
    host: str
    port: int
    websocket: bool
    peer_id: PeerId | None
    relay: PeerId | None = None
    """The peer that is really at this host and port, and reaches `peer_id` for us."""

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
        peer_id = relay = None
        if names[-1:] == ["p2p"]:
            peer_id = _peer_id(str(parts[len(names) - 1][1]))
            names.pop()
        if names[-2:] == ["p2p", "p2p-circuit"] and peer_id is not None:
            relay = _peer_id(str(parts[len(names) - 2][1]))
            del names[-2:]
            if relay == peer_id:
                raise ValueError("it leads over a relay to that relay")
        if len(names) not in (2, 3) or names[0] not in _IP + _DNS or names[1] != "tcp" or names[2:] not in ([], ["ws"]):
            raise ValueError("only /ip4, /ip6 or /dns with /tcp and perhaps /ws is supported")
        return cls(names[0], str(parts[0][1]), int(str(parts[1][1])), names[2:] == ["ws"], peer_id, relay)

    @property
    def family(self) -> socket.AddressFamily:
        """Of the socket that reaches it."""
        families = {"ip4": socket.AF_INET, "dns4": socket.AF_INET, "ip6": socket.AF_INET6, "dns6": socket.AF_INET6}
        return families.get(self.kind, socket.AF_UNSPEC)

    @property
    def is_loopback(self) -> bool:
        """True when only this machine can reach it."""
        return self.kind in _IP and ipaddress.ip_address(self.host).is_loopback

    @property
    def hop(self) -> Address:
        """Where to connect to: the relay's own address, if there is one."""
        return replace(self, peer_id=self.relay, relay=None) if self.relay is not None else self

    def __str__(self) -> str:
        where = f"/{self.kind}/{self.host}/tcp/{self.port}{'/ws' if self.websocket else ''}"
        circuit = f"/p2p/{self.relay}/p2p-circuit" if self.relay else ""
        return where + circuit + (f"/p2p/{self.peer_id}" if self.peer_id else "")


def _peer_id(text: str) -> PeerId:
    public_key_of(text)
    return PeerId(text)


def remote_multiaddr(host: str, port: int, *, websocket: bool = False) -> str:
    """The multiaddr of the other end of a socket."""
    kind = "ip6" if ":" in host else "ip4"
    return f"/{kind}/{host}/tcp/{port}{'/ws' if websocket else ''}"


def reachable_hosts(host: str) -> list[str]:
    """The addresses that a listener on `host` can be dialled at, loopback first, then private ones."""
    listening = ipaddress.ip_address(host)
    if not listening.is_unspecified:
        return [host]
    return [interface.host for interface in interfaces() if interface.version == listening.version]


async def host_of(address: Address) -> str:
    """What to connect to. Raises OSError.

    A name of one family is looked up here, because `trio.open_tcp_stream` would try both.
    """
    if address.kind not in ("dns4", "dns6"):
        return address.host
    found = await trio.socket.getaddrinfo(address.host, address.port, family=address.family, type=socket.SOCK_STREAM)
    return str(found[0][4][0])


def best_first(addresses: Iterable[Address]) -> list[Address]:
    """In the order to dial: near before far, relays last; loopback late when the peer is clearly on another machine."""
    wanted = list(dict.fromkeys(addresses))
    ours = {interface.host for interface in interfaces()}
    outside = [address.host for address in wanted if address.kind in _IP and not address.relay and distance(address.host)]
    elsewhere = bool(outside) and not ours.intersection(outside)
    return sorted(wanted, key=lambda address: _order(address, elsewhere=elsewhere))


def _order(address: Address, *, elsewhere: bool) -> tuple[bool, int, bool]:
    far = 2 if address.kind in _DNS else distance(address.host)
    return (address.relay is not None, 3 if elsewhere and far == 0 else far, address.websocket)
