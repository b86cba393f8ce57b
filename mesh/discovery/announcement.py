"""What a peer says about itself in the TXT record of its mDNS service.

1. libp2p's own entries `dnsaddr=ADDRESS/p2p/ID`, one address each, and ours: `mesh=NAME`, `role=ROLE`.
2. What is read is untrusted: at most `MAX_TEXT` bytes and `MAX_ADDRESSES` addresses are looked at; anything malformed makes the
   whole announcement void. Peers of other libp2p programs have no `mesh=`; theirs are void for us too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.errors import Misconfigured
from mesh.identity import PeerId, public_key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_TEXT = 4096
"""Bytes of a TXT record. Ours have less than half of that."""

MAX_ADDRESSES = 8
MAX_ENTRY = 255
"""Bytes of an entry: its length is one byte."""


@dataclass(frozen=True)
class Found:
    """Somebody who says to be in a mesh. Nothing of it is proven."""

    peer_id: PeerId
    addresses: list[str]
    mesh: str
    role: str


def encode(announced: Found) -> bytes:
    """The TXT record that says so. Raises Misconfigured when the mesh name is too long for it."""
    names = [f"mesh={announced.mesh}".encode(), f"role={announced.role}".encode()]
    if any(len(name) > MAX_ENTRY for name in names):
        raise Misconfigured(f"the mesh name {announced.mesh[:40]!r}... is too long to announce; use at most 250 bytes")
    dnsaddrs = [entry for address in announced.addresses if len(entry := f"dnsaddr={address}".encode()) <= MAX_ENTRY]
    return b"".join(bytes([len(entry)]) + entry for entry in names + dnsaddrs[:MAX_ADDRESSES])


def decode(text: bytes) -> Found | None:
    """What a TXT record says; None when it is not an announcement of ours."""
    if len(text) > MAX_TEXT:
        return None
    values: dict[str, list[str]] = {"mesh": [], "role": [], "dnsaddr": []}
    try:
        for entry in _entries(text):
            key, separator, value = entry.decode().partition("=")
            if separator and key in values:
                values[key].append(value)
        addresses = values["dnsaddr"][:MAX_ADDRESSES]
        (peer_id,) = {_peer_of(address) for address in addresses}
        (mesh,), (role,) = values["mesh"], values["role"]
    except (ValueError, IndexError):
        return None
    return Found(peer_id, addresses, mesh, role)


def _entries(text: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(text):
        end = start + 1 + text[start]
        if end > len(text):
            raise ValueError("an entry is longer than the record")
        yield text[start + 1 : end]
        start = end


def _peer_of(address: str) -> PeerId:
    transport, separator, peer_id = address.rpartition("/p2p/")
    if not separator or not transport.startswith("/") or not address.isprintable():
        raise ValueError("not the address of a peer")
    public_key_of(peer_id)
    return PeerId(peer_id)
