"""One peer as the registry shows it.

1. What a registry of thousands looks at is kept beside the signed bytes; the rest is opened from them when somebody asks, and
   stays open only while there is a link: most records are never looked into.
2. `offers` and the index of models change together: only the registry calls `take`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from mesh.identity import PeerId
from mesh.record import read_unchecked

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.link import Link
    from mesh.loopback import Loopback
    from mesh.messages.record import ModelEntry, ModelState, NodeRecord, Role, SealedRecord

MAX_OFFERS = 1_024
"""Models of one record that are found by name; a record has room for fewer unless it was made to hurt."""
MAX_ALIASES = 16
_NO_STATES: Mapping[str, ModelState] = {}


class Offer(NamedTuple):
    """What of a model entry decides whom to ask. Names are interned: thousands of nodes serve the same models."""

    id: str
    state: ModelState
    aliases: tuple[str, ...]


class PeerView:
    """One peer, as we know it now. The same object for as long as the peer is known."""

    __slots__ = ("_link", "_record", "learned", "offers", "peer_id", "relay", "role", "sealed", "sequence", "states", "ttl")

    def __init__(self, record: NodeRecord, sealed: SealedRecord, learned: float, link: Link | Loopback | None = None) -> None:
        self.peer_id = PeerId(record.peer_id)
        self.states: Mapping[str, ModelState] = _NO_STATES
        """Of its models, from its last heartbeat: fresher than the record."""
        self._link = link
        self.take(record, sealed, learned)

    def take(self, record: NodeRecord, sealed: SealedRecord, learned: float) -> None:
        """Show this record from now on. `learned`: when the peer issued it, on our own clock, as far as is known."""
        self.sealed = sealed
        self.learned = learned
        self.sequence = record.sequence
        self.ttl = record.ttl
        self.role: Role = record.role
        self.relay = record.relay
        models = record.models[:MAX_OFFERS]
        self.offers = tuple(
            Offer(sys.intern(one.id), one.state, tuple(map(sys.intern, one.aliases[:MAX_ALIASES]))) for one in models
        )
        self._record = record if self._link is not None else None

    @property
    def record(self) -> NodeRecord:
        """The whole record. Costs some 20 us where there is no link."""
        if self._record is not None:
            return self._record
        record = read_unchecked(self.sealed)
        if self._link is not None:
            self._record = record
        return record

    @property
    def link(self) -> Link | Loopback | None:
        """What proves it, or None."""
        return self._link

    @link.setter
    def link(self, link: Link | Loopback | None) -> None:
        self._link = link
        if link is None:
            self._record = None
            self.states = _NO_STATES

    @property
    def expires(self) -> float:
        """When the record dies without a link, on trio's clock."""
        return self.learned + self.ttl

    @property
    def live(self) -> bool:
        """True while a link proves it and it has not said Leave."""
        link = self._link
        return link is not None and not link.leaving and not link.closed.is_set()

    @property
    def serves(self) -> bool:
        """True for a node, and for a gateway that announces models of foreign services."""
        return self.role == "node" or bool(self.offers)

    @property
    def models(self) -> list[ModelEntry]:
        """The record's entries in the states that the last heartbeat told."""
        return [self._present(entry) for entry in self.record.models]

    @property
    def working(self) -> list[str]:
        """The ids of its models that have not failed."""
        return [offer.id for offer in self.offers if self.states.get(offer.id, offer.state) != "failed"]

    def _present(self, entry: ModelEntry) -> ModelEntry:
        state = self.states.get(entry.id, entry.state)
        return entry if state == entry.state else msgspec.structs.replace(entry, state=state)
