"""The record that a peer issues about itself.

1. `sequence` starts at the clock in milliseconds and grows with every issue, so it grows over restarts too.
2. Where the clock went back over a restart, others still hold a higher sequence of ours: hearing of it, we grow past it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mesh.errors import Misconfigured
from mesh.messages.record import ModelEntry, NodeRecord, SealedRecord
from mesh.record import RECORD_TTL, RecordError, open_record, read_unchecked, seal
from mesh.version import __version__

if TYPE_CHECKING:
    from mesh.peer_settings import PeerSettings

MAX_SEQUENCE = 2**62


class OwnRecord:
    """`addresses`, `models` and `relay` are what the next issue says; `sealed` is the last issue."""

    def __init__(self, settings: PeerSettings) -> None:
        self.addresses: list[str] = []
        self.models: list[ModelEntry] = []
        self.relay = False
        self._settings = settings
        self._sequence = int(time.time() * 1000)
        self.sealed = self._seal()

    def issue(self) -> SealedRecord:
        """Seal it anew. Raises Misconfigured when it is over `MAX_RECORD`; the last issue then stays."""
        self._sequence += 1
        self.sealed = self._seal()
        return self.sealed

    def outgrows(self, sealed: SealedRecord) -> bool:
        """Take in a record of ourselves that others hold. True when ours must be issued again to replace it."""
        if sealed.payload == self.sealed.payload:
            return False
        own = self._settings.identity.peer_id
        try:
            # The claim first: a signature costs a hundred times as much, and most records are of others.
            record = open_record(sealed) if read_unchecked(sealed).peer_id == own else None
        except RecordError:
            return False
        if record is None or not self._sequence <= record.sequence < MAX_SEQUENCE:
            return False
        self._sequence = record.sequence
        return True

    def _seal(self) -> SealedRecord:
        settings = self._settings
        record = NodeRecord(
            peer_id=settings.identity.peer_id,
            sequence=self._sequence,
            issued_at=int(time.time()),
            ttl=RECORD_TTL,
            role=settings.role,
            name=settings.name,
            mesh=settings.mesh,
            version=__version__,
            addresses=self.addresses,
            models=self.models,
            hardware=settings.hardware,
            ports=settings.ports,
            limits=settings.limits,
            relay=self.relay,
        )
        try:
            return seal(settings.identity, record)
        except RecordError as error:
            raise Misconfigured(f"what this peer says of itself does not fit: {error}; serve fewer models") from error
