"""What py-libp2p's Kademlia takes for its host: it stands between it and the network.

1. A peer is asked only where `gate` allows it. One that cannot be reached, or does not answer in time, is suspected: left alone
   for `SUSPICION` seconds. So a dead peer costs one dial, not one in every question.
2. A peer counts as a server of the DHT, and gets into the table, only after it answered on a connection that we dialled. So
   whoever cannot be reached, or only asks, is in nobody's table.
3. Whatever the protocol that py-libp2p names, the one spoken is that of our mesh.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.kad_dht.common import PROTOCOL_ID
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mesh.errors import Denied
from mesh.identity import PeerId
from mesh.transport.libp2p.kad.book import AddressBook
from mesh.transport.libp2p.kad.calls import Calls
from mesh.transport.libp2p.kad.streams import BoundedStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from libp2p.abc import INetStream
    from libp2p.crypto.keys import PrivateKey

    from mesh.discovery.table import Gate
    from mesh.transport.libp2p.connection import Connection
    from mesh.transport.libp2p.transport import Libp2pTransport

OPEN_LIMIT = 4.0
"""Seconds until a stream must be open, dialling included."""
ANSWER_LIMIT = 3.0
"""Seconds for one read or write."""
MAX_ANSWER = 64 * 1024
"""Bytes of one answer: 20 peers with addresses and a record have less than a third of it."""
SUSPICION = 30.0
MAX_SUSPECTS = 1_000
MAX_OWN_ADDRESSES = 8


class DhtHost:
    """See the head of this file. `proven` is called with a peer by rule 2, `lost` when one is suspected."""

    def __init__(
        self,
        transport: Libp2pTransport,
        gate: Gate,
        protocol: str,
        *,
        proven: Callable[[ID], Awaitable[None]],
        lost: Callable[[ID], None],
    ) -> None:
        self._transport = transport
        self._gate = gate
        self._protocol = protocol
        self._proven = proven
        self._lost = lost
        self._keys = create_new_key_pair(transport.identity.seed)
        self._id = ID.from_pubkey(self._keys.public_key)
        self._suspects: dict[PeerId, float] = {}
        self.book = AddressBook(gate.known, gate.usable)
        self.calls = Calls(transport.connect, self.book.addresses, self._fit)

    def suspect(self, peer_id: PeerId) -> None:
        """Ask a peer nothing for a while."""
        self.calls.hang_up(peer_id)
        self._suspects.pop(peer_id, None)
        self._suspects[peer_id] = trio.current_time() + SUSPICION
        if len(self._suspects) > MAX_SUSPECTS:
            del self._suspects[next(iter(self._suspects))]
        self._lost(ID.from_base58(peer_id))

    def trust(self, peer_id: PeerId) -> None:
        """There is news of a peer: it may be asked again."""
        self._suspects.pop(peer_id, None)

    def suspected(self, peer_id: PeerId) -> bool:
        """True while it is left alone."""
        return self._suspects.get(peer_id, 0.0) > trio.current_time()

    def _may_ask(self, peer_id: PeerId) -> bool:
        return not self.suspected(peer_id) and self._gate.admits(peer_id, None)

    def _fit(self, connection: Connection) -> None:
        if not self._gate.admits(connection.peer_id, connection.remote_address):
            raise Denied(f"{connection.peer_id} at {connection.remote_address} is not of this mesh")

    # What py-libp2p asks of a host.

    def get_id(self) -> ID:
        """Ours."""
        return self._id

    def get_private_key(self) -> PrivateKey:
        """Signs what py-libp2p sends."""
        return self._keys.private_key

    def get_addrs(self) -> list[Multiaddr]:
        """Where others reach us, without the peer id, as libp2p sends them."""
        suffix = f"/p2p/{self._transport.identity.peer_id}"
        return [Multiaddr(address.removesuffix(suffix)) for address in self._transport.addresses[:MAX_OWN_ADDRESSES]]

    def get_peerstore(self) -> AddressBook:
        """Addresses."""
        return self.book

    def get_connected_peers(self) -> list[ID]:
        """Whom it may ask besides those in its table."""
        return [ID.from_base58(peer_id) for peer_id in self.calls.peers if self._may_ask(peer_id)]

    def set_stream_handler(self, _protocol: str, handler: Callable[[INetStream], Awaitable[None]]) -> None:
        """Answer others."""
        self._transport.serve(self._protocol, handler)

    async def new_stream(self, peer: ID, protocols: Sequence[str]) -> BoundedStream:
        """A stream to a peer. Raises ConnectionError when it is left alone, and what dialling and py-libp2p raise."""
        peer_id = PeerId(str(peer))
        if not self._may_ask(peer_id):
            raise ConnectionError(f"{peer_id} is not asked now")
        ours = PROTOCOL_ID in protocols
        try:
            with trio.fail_after(OPEN_LIMIT):
                stream = await self.calls.stream(peer_id, self._protocol if ours else protocols[0])
        except LookupError:
            # Nobody told where it is: that says nothing about it.
            raise
        except Exception:
            self.suspect(peer_id)
            raise
        return BoundedStream(
            stream,
            limit=MAX_ANSWER,
            patience=ANSWER_LIMIT,
            broken=lambda late: self.suspect(peer_id) if late else self.calls.hang_up(peer_id),
            answered=(lambda: self._proven(peer)) if ours else None,
        )
