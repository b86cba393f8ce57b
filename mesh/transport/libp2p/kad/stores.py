"""What others give this peer to keep for the DHT, within bounds of count, size and time.

1. A value lives `VALUE_TTL` seconds and a provider `PROVIDER_TTL`, counted from receipt; their peers publish them again before.
2. At most `MAX_VALUES` values and `MAX_KEYS` keys with providers are kept; the oldest makes room. One peer provides at most
   `MAX_KEYS_PER_PEER` keys; its own oldest makes room.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.value_store import ValueStore

if TYPE_CHECKING:
    from libp2p.kad_dht.pb.kademlia_pb2 import Record
    from libp2p.peer.peerinfo import PeerInfo

VALUE_TTL = 300.0
PROVIDER_TTL = 600.0
MAX_VALUES = 1_000
MAX_KEYS = 1_000
MAX_KEYS_PER_PEER = 128


class Values(ValueStore):  # type: ignore[misc]  # untyped base
    """Rule 1 and 2 for node records."""

    def put_record(self, key: bytes, record: Record) -> None:
        """Keep a record that was checked."""
        self.store.pop(key, None)
        while len(self.store) >= MAX_VALUES:
            del self.store[next(iter(self.store))]
        self.store[key] = (record, time.time() + VALUE_TTL)

    def put(self, key: bytes, value: bytes, validity: float = 0.0) -> None:
        """Keep our own."""
        super().put(key, value, validity)
        self.put_record(key, self.store[key][0])


class Providers(ProviderStore):  # type: ignore[misc]  # untyped base
    """Rule 1 and 2 for who serves a model."""

    def add_provider(self, key: bytes, provider: PeerInfo) -> None:
        """Keep that a peer provides a key."""
        self._expire()
        peer_id = str(provider.peer_id)
        # Taken out and put back: both are in order of age.
        known = self.providers.pop(key, {})
        known.pop(peer_id, None)
        mine = [other for other, providers in self.providers.items() if peer_id in providers]
        if len(mine) >= MAX_KEYS_PER_PEER:
            self._drop(mine[0], peer_id)
        while len(self.providers) >= MAX_KEYS:
            del self.providers[next(iter(self.providers))]
        self.providers[key] = known
        super().add_provider(key, provider)

    def get_providers(self, key: bytes) -> Any:
        """Those that are not too old."""
        self._expire()
        return super().get_providers(key)

    def _expire(self) -> None:
        oldest = time.time() - PROVIDER_TTL
        for key, providers in list(self.providers.items()):
            for peer_id in [one for one, record in providers.items() if record.timestamp < oldest]:
                self._drop(key, peer_id)

    def _drop(self, key: bytes, peer_id: str) -> None:
        del self.providers[key][peer_id]
        if not self.providers[key]:
            del self.providers[key]
