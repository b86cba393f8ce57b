"""A node record as a value of the DHT: under which key, in which bytes, and which ones are refused.

1. A value is our own sealed record, signed by the peer that its key names. Nothing else is kept or passed on.
2. The highest sequence wins. One below the highest ever seen of a peer is refused, for the latest `MAX_REMEMBERED` peers: a value
   that expired cannot be played back.
3. Keys have at most 50 bytes: py-libp2p refuses to look for longer ones.
"""

from __future__ import annotations

import base64
import hashlib
from typing import TYPE_CHECKING

import msgspec
from libp2p.records.validator import Validator

from mesh.messages.record import SealedRecord
from mesh.record import MAX_RECORD, open_record, read_unchecked

if TYPE_CHECKING:
    from mesh.messages.record import NodeRecord

NAMESPACE = "infermesh"
MAX_VALUE = MAX_RECORD + 128
MAX_REMEMBERED = 2_000

_decoder = msgspec.msgpack.Decoder(SealedRecord)


def protocol_of(mesh: str) -> str:
    """The protocol that peers of one mesh speak. Those of another mesh are not even asked."""
    return f"/infermesh-{hashlib.sha256(mesh.encode()).hexdigest()[:16]}/kad/1.0.0"


def record_key(peer_id: str) -> str:
    """Where the record of a peer is kept."""
    digest = hashlib.sha256(peer_id.encode()).digest()[:24]
    return f"/{NAMESPACE}/{base64.urlsafe_b64encode(digest).decode()}"


def model_key(mesh: str, model: str) -> str:
    """Where the providers of a model are kept: hexadecimal, as py-libp2p takes it."""
    return hashlib.sha256(b"infermesh-model\0" + mesh.encode() + b"\0" + model.encode()).hexdigest()


def value_of(sealed: SealedRecord) -> bytes:
    """A record as it is kept."""
    return msgspec.msgpack.encode(sealed)


def sealed_in(value: bytes) -> SealedRecord:
    """The record in a value, unchecked. Raises ValueError."""
    if len(value) > MAX_VALUE:
        raise ValueError(f"a value of {len(value)} bytes is over the limit of {MAX_VALUE}")
    return _decoder.decode(value)


class RecordValidator(Validator):  # type: ignore[misc]  # untyped base
    """Rules 1 and 2, for one mesh."""

    def __init__(self, mesh: str) -> None:
        self._mesh = mesh
        self._newest: dict[str, int] = {}

    def validate(self, key: str, value: bytes) -> None:
        """Raise ValueError unless the value is a record that belongs under this key."""
        record = open_record(sealed_in(value))
        if record_key(record.peer_id) != key:
            raise ValueError(f"the record of {record.peer_id} under the key of somebody else")
        if record.mesh != self._mesh or record.role == "client":
            raise ValueError(f"a record of a {record.role} of mesh {record.mesh[:64]!r}")
        self._remember(record)

    def select(self, key: str, values: list[bytes]) -> int:  # noqa: ARG002 - py-libp2p's signature
        """Which of several valid values is the newest; the first of equals."""
        return max(range(len(values)), key=lambda index: (read_unchecked(sealed_in(values[index])).sequence, -index))

    def _remember(self, record: NodeRecord) -> None:
        newest = self._newest.pop(record.peer_id, record.sequence)
        self._newest[record.peer_id] = max(newest, record.sequence)
        if len(self._newest) > MAX_REMEMBERED:
            del self._newest[next(iter(self._newest))]
        if record.sequence < newest:
            raise ValueError(f"an older record of {record.peer_id}")
