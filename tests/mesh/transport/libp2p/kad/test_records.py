"""Which values are node records, and which of two wins."""

from __future__ import annotations

import pytest

from mesh.identity import Identity
from mesh.messages.record import SealedRecord
from mesh.transport.libp2p.kad import records
from mesh.transport.libp2p.kad.records import RecordValidator, model_key, protocol_of, record_key, sealed_in, value_of
from tests.mesh.transport.libp2p.kad.conftest import MESH, record_of

OWNER = Identity.generate()
KEY = record_key(OWNER.peer_id)


def test_a_record_goes_there_and_back():
    sealed = record_of(OWNER)
    RecordValidator(MESH).validate(KEY, value_of(sealed))
    assert sealed_in(value_of(sealed)) == sealed


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"rubbish",
        bytes(20_000),
        value_of(SealedRecord(record_of(OWNER).payload, bytes(64))),
        value_of(SealedRecord(record_of(OWNER).payload[:-1], record_of(OWNER).signature)),
        value_of(record_of(OWNER, mesh="other")),
        value_of(record_of(OWNER, role="client")),
        value_of(record_of(Identity.generate())),
    ],
    ids=["empty", "rubbish", "too long", "unsigned", "cut", "another mesh", "a client", "another peer"],
)
def test_what_is_refused(value):
    with pytest.raises(ValueError, match=r"."):
        RecordValidator(MESH).validate(KEY, value)


def test_an_older_one_is_refused_once_a_newer_was_seen(monkeypatch):
    monkeypatch.setattr(records, "MAX_REMEMBERED", 2)
    validator = RecordValidator(MESH)
    validator.validate(KEY, value_of(record_of(OWNER, sequence=7)))
    validator.validate(KEY, value_of(record_of(OWNER, sequence=7)))
    with pytest.raises(ValueError, match="older"):
        validator.validate(KEY, value_of(record_of(OWNER, sequence=6)))
    for _ in range(2):
        other = Identity.generate()
        validator.validate(record_key(other.peer_id), value_of(record_of(other)))
    assert len(validator._newest) == 2
    # It is the registry that refuses what is forgotten here.
    validator.validate(KEY, value_of(record_of(OWNER, sequence=6)))


def test_the_newest_of_several_wins_and_the_first_of_equals():
    values = [value_of(record_of(OWNER, sequence=number)) for number in (3, 9, 9, 1)]
    assert RecordValidator(MESH).select(KEY, values) == 1


def test_keys_fit_and_differ():
    assert len(KEY.encode()) <= 50
    assert record_key(Identity.generate().peer_id) != KEY
    assert model_key("a", "m") != model_key("b", "m") != model_key("b", "n")
    assert protocol_of("a") != protocol_of("b")
