"""Where peers of the DHT may be reached: what py-libp2p's Kademlia takes for its peerstore.

1. What is heard of others is a hint: at most `MAX_PEERS` peers with `MAX_ADDRESSES` addresses each, the latest, and only those
   that we could dial. What their own records say (`known`) comes first and is not kept here.
2. Signed peer records of libp2p are read for their addresses alone and not passed on: ours is the record that counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mesh.identity import PeerId
from mesh.transport.libp2p.addresses import Address

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from libp2p.peer.envelope import Envelope

MAX_PEERS = 1_000
MAX_ADDRESSES = 8


class AddressBook:
    """`known` gives the addresses that a peer's own record names, `usable` says whether one may be dialled."""

    def __init__(self, known: Callable[[PeerId], Sequence[str]], usable: Callable[[str], bool]) -> None:
        self._known = known
        self._usable = usable
        self._heard: dict[PeerId, list[str]] = {}
        self._local: Envelope | None = None

    def addresses(self, peer_id: PeerId) -> list[str]:
        """Full addresses, the surest first."""
        known = [address for address in self._known(peer_id) if self._fits(address, peer_id)]
        return list(dict.fromkeys([*known, *self._heard.get(peer_id, ())]))

    def hear(self, peer_id: PeerId, addresses: Iterable[str]) -> None:
        """Somebody says that a peer is there."""
        fresh = [full for address in addresses if self._fits(full := _full(address, peer_id), peer_id)]
        if not fresh:
            return
        kept = list(dict.fromkeys([*fresh[:MAX_ADDRESSES], *self._heard.pop(peer_id, ())]))
        self._heard[peer_id] = kept[:MAX_ADDRESSES]
        if len(self._heard) > MAX_PEERS:
            del self._heard[next(iter(self._heard))]

    def _fits(self, address: str, peer_id: PeerId) -> bool:
        try:
            return Address.parse(address).peer_id == peer_id and self._usable(address)
        except ValueError:
            return False

    # What py-libp2p asks of a peerstore.

    def addrs(self, peer: ID) -> list[Multiaddr]:
        """Without the peer id, as libp2p sends them. Raises LookupError when there are none."""
        peer_id = PeerId(str(peer))
        found = [Multiaddr(address.removesuffix(f"/p2p/{peer_id}")) for address in self.addresses(peer_id)]
        if not found:
            raise LookupError(f"no address of {peer_id} is known")
        return found[:MAX_ADDRESSES]

    def add_addrs(self, peer: ID, addresses: Iterable[Multiaddr], _ttl: int = 0) -> None:
        """Addresses that a third peer told."""
        self.hear(PeerId(str(peer)), (str(address) for address in addresses))

    def peer_ids(self) -> list[ID]:
        """Everybody heard of."""
        return [ID.from_base58(peer_id) for peer_id in self._heard]

    def consume_peer_record(self, envelope: Envelope, _ttl: int) -> bool:
        """Addresses that a peer signed itself."""
        record = envelope.record()
        self.hear(PeerId(str(record.peer_id)), (str(address) for address in record.addrs))
        return True

    def get_peer_record(self, _peer: ID) -> None:
        """None: rule 2."""

    def get_local_record(self) -> Envelope | None:
        """Our own, as made last."""
        return self._local

    def set_local_record(self, envelope: Envelope) -> None:
        """Keep our own."""
        self._local = envelope


def _full(address: str, peer_id: PeerId) -> str:
    return address if "/p2p/" in address else f"{address}/p2p/{peer_id}"
