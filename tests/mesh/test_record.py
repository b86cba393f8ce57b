"""Sealing and opening records: what is accepted, and every way of being refused."""

from __future__ import annotations

import secrets
import zlib

import msgspec
import pytest

from mesh.identity import Identity
from mesh.messages.record import Capabilities, ModelEntry, NodeRecord, SealedRecord
from mesh.record import CONTEXT, MAX_INFLATED, MAX_RECORD, MAX_TTL, RECORD_TTL, RecordError, open_record, read_unchecked, seal


@pytest.fixture
def identity() -> Identity:
    return Identity.from_seed(b"\x07" * 32)


def record_of(identity: Identity, **changes) -> NodeRecord:
    values = {
        "peer_id": identity.peer_id,
        "sequence": 1,
        "issued_at": 1_700_000_000,
        "ttl": RECORD_TTL,
        "role": "node",
        "name": "n",
        "mesh": "test",
        "version": "0",
        "addresses": ["/ip4/127.0.0.1/tcp/1/p2p/x"],
    }
    return NodeRecord(**(values | changes))


def signed(identity: Identity, payload: bytes) -> SealedRecord:
    return SealedRecord(payload, identity.sign(CONTEXT, payload))


def test_what_is_sealed_opens_to_the_same(identity):
    record = record_of(identity, models=[ModelEntry(id="m", state="ready")])
    assert open_record(seal(identity, record)) == record


def test_a_changed_byte_breaks_the_signature(identity):
    sealed = seal(identity, record_of(identity))
    payload = zlib.compress(zlib.decompress(sealed.payload).replace(b"test", b"tess"))
    with pytest.raises(RecordError, match="signature"):
        open_record(SealedRecord(payload, sealed.signature))


def test_a_record_signed_by_somebody_else_is_refused(identity):
    other = Identity.generate()
    payload = msgspec.msgpack.encode(record_of(identity))
    with pytest.raises(RecordError, match="signature"):
        open_record(signed(other, payload))


def test_a_signature_for_another_purpose_is_refused(identity):
    payload = msgspec.msgpack.encode(record_of(identity))
    with pytest.raises(RecordError, match="signature"):
        open_record(SealedRecord(payload, identity.sign(b"infermesh-hello-v1", payload)))


def test_only_its_own_peer_seals_a_record(identity):
    with pytest.raises(RecordError, match="the key is of"):
        seal(Identity.generate(), record_of(identity))


def test_a_record_over_the_limit_is_neither_sealed_nor_opened(identity):
    large = record_of(identity, name=secrets.token_hex(MAX_RECORD))
    with pytest.raises(RecordError, match="8192"):
        seal(identity, large)
    with pytest.raises(RecordError, match="8192"):
        open_record(signed(identity, msgspec.msgpack.encode(large)))


def test_a_record_that_inflates_without_end_is_neither_sealed_nor_opened(identity):
    large = record_of(identity, name="x" * MAX_INFLATED)
    with pytest.raises(RecordError, match="65536"):
        seal(identity, large)
    with pytest.raises(RecordError, match="65536"):
        read_unchecked(signed(identity, zlib.compress(msgspec.msgpack.encode(large))))


def test_a_damaged_deflated_record_is_refused(identity):
    payload = seal(identity, record_of(identity)).payload
    for damaged in (payload[:-1], payload + b"x", payload[:20] + b"\xff\xff\xff" + payload[23:], b"\x78"):
        with pytest.raises(RecordError, match=r"cut|not a record"):
            read_unchecked(signed(identity, damaged))


def test_a_record_that_is_not_deflated_is_read_too(identity):
    assert open_record(signed(identity, msgspec.msgpack.encode(record_of(identity)))) == record_of(identity)


@pytest.mark.parametrize("ttl", [0, -1, MAX_TTL + 1])
def test_a_lifetime_outside_the_bounds_is_refused(identity, ttl):
    with pytest.raises(RecordError, match="lifetime"):
        open_record(signed(identity, msgspec.msgpack.encode(record_of(identity, ttl=ttl))))


def test_a_sequence_below_zero_is_refused(identity):
    with pytest.raises(RecordError, match="sequence"):
        open_record(signed(identity, msgspec.msgpack.encode(record_of(identity, sequence=-1))))


@pytest.mark.parametrize(
    "payload", [b"", b"\xc1", b"\x91" * 4000, msgspec.msgpack.encode([1]), msgspec.msgpack.encode({"peer_id": 3})]
)
def test_what_is_no_record_is_refused(identity, payload):
    with pytest.raises(RecordError, match="not a record"):
        open_record(signed(identity, payload))


@pytest.mark.parametrize("peer_id", ["", "me", "12D3KooW", "l0O!" * 10])
def test_a_peer_id_that_is_none_is_refused(identity, peer_id):
    with pytest.raises(RecordError, match="signature"):
        open_record(signed(identity, msgspec.msgpack.encode(record_of(identity, peer_id=peer_id))))


def test_a_cut_signature_is_refused_before_it_is_checked(identity):
    sealed = seal(identity, record_of(identity))
    with pytest.raises(RecordError, match="cut"):
        read_unchecked(SealedRecord(sealed.payload, sealed.signature[:-1]))


def test_fields_of_a_newer_version_are_ignored(identity):
    fields = msgspec.to_builtins(record_of(identity)) | {"colour": "green", "more": [1, 2]}
    assert open_record(signed(identity, msgspec.msgpack.encode(fields))) == record_of(identity)


def test_sixty_four_models_as_they_are_fit_a_record(identity):
    models = [
        ModelEntry(
            id=f"some-organisation/Some-Model-{number}.5-{number}B-Instruct",
            aliases=[f"model-{number}"],
            context_length=8192 * (number + 1),
            state="ready",
            weights_digest=secrets.token_hex(32),
            numerics=secrets.token_hex(16),
            backend="torch",
            created=1_700_000_000 + 1000 * number,
            capabilities=Capabilities(tasks=["chat", "completion"], hardware_types=["cuda"], protocols=["infermesh"]),
        )
        for number in range(64)
    ]
    record = record_of(identity, models=models, addresses=[f"/ip4/10.0.0.{n}/tcp/4001/p2p/{identity.peer_id}" for n in range(8)])
    assert open_record(seal(identity, record)) == record
