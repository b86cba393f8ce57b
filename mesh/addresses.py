"""What an address says: whose it is, and whether it is near enough for an open mesh."""

from __future__ import annotations

import ipaddress
from itertools import pairwise

from mesh.errors import Misconfigured
from mesh.identity import PeerId, public_key_of


def peer_of(address: str) -> PeerId:
    """The peer id at the end of a full multiaddr. Raises ValueError when there is none or it is not an Ed25519 peer id."""
    head, marker, peer_id = address.rpartition("/p2p/")
    if not marker or not head.startswith("/"):
        raise ValueError(f"{address[:200]!r} does not end in /p2p/<peer id>")
    public_key_of(peer_id)
    return PeerId(peer_id)


def names(address: str, peer_id: PeerId) -> bool:
    """True when `address` is a full multiaddr of this peer."""
    try:
        return peer_of(address) == peer_id
    except ValueError:
        return False


def by_peer(addresses: list[str]) -> dict[PeerId, list[str]]:
    """What --bootstrap gave, grouped by peer. Raises Misconfigured."""
    grouped: dict[PeerId, list[str]] = {}
    for address in addresses:
        try:
            grouped.setdefault(peer_of(address), []).append(address)
        except ValueError as error:
            raise Misconfigured(f"--bootstrap: {error}; pass an address as `mesh-bootstrap` prints it") from error
    return grouped


def is_near(address: str) -> bool:
    """True unless `address` (a multiaddr or `host:port`) holds an IP address outside loopback, link-local and private ranges."""
    ip = ip_of(address)
    return ip is None or ip.is_loopback or ip.is_link_local or ip.is_private


def is_loopback_host(host: str) -> bool:
    """True for the name or IP address of a host that only this machine reaches."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_loopback_address(address: str) -> bool:
    """True when `address` (a multiaddr or `host:port`) is reached from its own machine alone."""
    ip = ip_of(address)
    return ip is not None and ip.is_loopback


def is_relayed(address: str) -> bool:
    """True when a multiaddr leads over a relay."""
    return "/p2p-circuit" in address


def at_host(address: str, host: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """The same multiaddr at another host."""
    rest = address.split("/", 3)[3]
    return f"/ip{host.version}/{host}/{rest}"


def ip_of(address: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address in a multiaddr or `host:port`; None for a name, and where there is none."""
    if address.startswith("/"):
        parts = address.split("/")
        # A zone (`/ip6zone/eth0/ip6/fe80::1`) stands before the address it belongs to.
        host = next((value for name, value in pairwise(parts) if name in ("ip4", "ip6")), "")
    else:
        host = address.rpartition(":")[0].strip("[]")
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    # A listener on both families sees an IPv4 peer like this.
    return ip.ipv4_mapped or ip if isinstance(ip, ipaddress.IPv6Address) else ip
