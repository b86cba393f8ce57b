"""Multiaddrs as an operator writes them, checked before anything is dialled or bound.

Only the outer form is checked, so that a mistake is named at start-up; the transport knows which of them it can really use.
"""

from __future__ import annotations

import ipaddress

from mesh.identity import public_key_of
from mesh.invite import PREFIX, is_invite, read, unseal

_DIAL_EXAMPLE = "/ip4/192.0.2.1/tcp/4001/p2p/12D3KooW..."
_LISTEN_EXAMPLE = "/ip4/0.0.0.0/tcp/4001"
_HIGHEST_PORT = 65535
_MAX_REPEATED = 60
"""Characters of something that is no address that an error repeats: it may be a piece of an invite."""


def check_bootstrap(text: str) -> None:
    """Raise ValueError unless `text` is an address to dial or an invite, which is never repeated."""
    if is_invite(text):
        for address in read(unseal(text)).addresses:
            check_dial_address(address)
    elif text.startswith("/") or len(text) <= _MAX_REPEATED:
        check_dial_address(text)
    else:
        raise ValueError(f"an argument of {len(text)} characters is neither an address (/ip4/...) nor an invite ({PREFIX}...)")


def check_dial_address(address: str) -> None:
    """Raise ValueError unless `address` is a multiaddr that ends in `/p2p/<peer id>`."""
    example = f"an address looks like {_DIAL_EXAMPLE}, as the other peer prints it when it is ready"
    parts = address.split("/")
    if "p2p" not in parts[1:]:
        raise ValueError(f"{address!r} does not say which peer it is: it must end in /p2p/PEER-ID; {example}")
    if len(parts) < 7 or parts[-2] != "p2p":
        raise ValueError(f"{address!r} is not a multiaddr that ends in /p2p/PEER-ID; {example}")
    try:
        public_key_of(parts[-1])
    except ValueError:
        raise ValueError(f"{address!r} ends in {parts[-1]!r}, which is not a peer id; {example}") from None
    _check_tcp(address, parts, lowest_port=1, example=example)


def check_peer_id(text: str) -> None:
    """Raise ValueError unless `text` is a peer id."""
    try:
        public_key_of(text)
    except ValueError:
        raise ValueError(f"{text[:80]!r} is not a peer id; it looks like 12D3KooW..., as a peer says when it is ready") from None


def check_listen_address(address: str) -> None:
    """Raise ValueError unless `address` is a TCP multiaddr without a peer id. Port 0 means a free one."""
    example = f"a listen address looks like {_LISTEN_EXAMPLE}"
    parts = address.split("/")
    if "p2p" in parts:
        raise ValueError(f"{address!r} names a peer: leave /p2p/... away; {example}")
    _check_tcp(address, parts, lowest_port=0, example=example)
    if parts[1] not in ("ip4", "ip6"):
        raise ValueError(f"{address!r} must name an IP address of this machine; {example}")


def _check_tcp(address: str, parts: list[str], *, lowest_port: int, example: str) -> None:
    if len(parts) < 5 or parts[0] != "" or parts[3] != "tcp":
        raise ValueError(f"{address!r} is not a TCP multiaddr; {example}")
    if not _is_host(parts[1], parts[2]):
        raise ValueError(f"{address!r}: /{parts[1]}/{parts[2]} is not a host; write /ip4/ADDRESS, /ip6/ADDRESS or /dns/NAME")
    if not (parts[4].isascii() and parts[4].isdigit() and lowest_port <= int(parts[4]) <= _HIGHEST_PORT):
        raise ValueError(f"{address!r}: the port {parts[4]!r} is not a number from {lowest_port} to {_HIGHEST_PORT}")


def _is_host(protocol: str, host: str) -> bool:
    try:
        match protocol:
            case "ip4":
                ipaddress.IPv4Address(host)
            case "ip6":
                ipaddress.IPv6Address(host)
            case _:
                return protocol in ("dns", "dns4", "dns6") and bool(host)
    except ValueError:
        return False
    return True
