"""Seal, open and check a node record.

1. The signature is by the record's own peer, over the bytes as sent, for the purpose `CONTEXT`; nobody encodes them again.
2. The bytes are MessagePack, deflated as zlib does it: the models of one node say nearly the same. As sent, a record is at most
   `MAX_RECORD` bytes, signature aside, and `MAX_INFLATED` as read. It lives between 1 and `MAX_TTL` seconds.
3. Age counts from receipt, never from `issued_at`: no two machines compare wall clocks.
"""

from __future__ import annotations

import zlib

import msgspec

from mesh.identity import Identity, verify
from mesh.messages.record import NodeRecord, SealedRecord

CONTEXT = b"infermesh-record-v1"
RECORD_TTL = 120
"""Seconds; a peer issues its record again at a third of it."""
MAX_TTL = 3600
MAX_RECORD = 8 * 1024
"""Bytes as sent: more than 64 models."""
MAX_INFLATED = 64 * 1024
_DEFLATED = b"\x78"
"""The first byte of zlib's format; MessagePack's maps never begin with it."""
SIGNATURE_BYTES = 64

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(NodeRecord)


class RecordError(ValueError):
    """A record that breaks a rule. Drop it; the message says which rule."""


def seal(identity: Identity, record: NodeRecord) -> SealedRecord:
    """Sign a record. Raises RecordError when others would refuse it."""
    plain = _encoder.encode(record)
    if len(plain) > MAX_INFLATED:
        raise RecordError(f"a record of {len(plain)} bytes is over the limit of {MAX_INFLATED}")
    payload = zlib.compress(plain, 9)
    _check(record, payload)
    if record.peer_id != identity.peer_id:
        raise RecordError(f"the record names {record.peer_id}, the key is of {identity.peer_id}")
    return SealedRecord(payload, identity.sign(CONTEXT, payload))


def read_unchecked(sealed: SealedRecord) -> NodeRecord:
    """What a record claims, before its signature is checked: enough to drop an old one cheaply. Raises RecordError."""
    if len(sealed.payload) > MAX_RECORD or len(sealed.signature) != SIGNATURE_BYTES:
        raise RecordError(f"a record of {len(sealed.payload)} bytes is over the limit of {MAX_RECORD}, or its signature is cut")
    try:
        return _decoder.decode(_inflated(sealed.payload))
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not a record: {error}") from error


def open_record(sealed: SealedRecord) -> NodeRecord:
    """The checked record. Raises RecordError on its size, shape, lifetime, peer id or signature."""
    record = read_unchecked(sealed)
    _check(record, sealed.payload)
    if not verify(record.peer_id, CONTEXT, sealed.payload, sealed.signature):
        raise RecordError(f"the signature is not by {record.peer_id[:64]}")
    return record


def _inflated(payload: bytes) -> bytes:
    if not payload.startswith(_DEFLATED):
        return payload
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(payload, MAX_INFLATED)
    except zlib.error as error:
        raise RecordError(f"not a record: {error}") from error
    if not stream.eof or stream.unused_data:
        raise RecordError(f"a record that is cut, or inflates to more than {MAX_INFLATED} bytes")
    return inflated


def _check(record: NodeRecord, payload: bytes) -> None:
    if len(payload) > MAX_RECORD:
        raise RecordError(f"a record of {len(payload)} bytes is over the limit of {MAX_RECORD}")
    if not 1 <= record.ttl <= MAX_TTL:
        raise RecordError(f"a lifetime of {record.ttl} s is outside 1..{MAX_TTL}")
    if record.sequence < 0:
        raise RecordError(f"a sequence of {record.sequence} is below 0")
