"""Frame bodies: messages that are understood, and those that are not."""

from __future__ import annotations

import msgspec
import pytest

from mesh.framing import FrameError
from mesh.link.codec import MAX_KIND, MAX_MESSAGES, Malformed, UnknownKind, decode, encode, join
from mesh.messages.inference import Delta, InferenceRequest
from mesh.messages.link import Cancel, Emit, Heartbeat, Leave, ModelLoad, Open, Records, Refused, Unknown
from mesh.messages.record import SealedRecord

ALL = [
    Refused("code", "text"),
    Heartbeat(1.5, 2.5, {"m": ModelLoad("ready", 1, 2, 3, 4.0, 5.0, 6)}),
    Records([SealedRecord(b"a", b"b")], [3]),
    Leave("why"),
    Open(1, InferenceRequest(request_id="r", model="m", messages=[{"role": "user", "content": [{"type": "text"}]}])),
    Emit(1, Delta(0, [1, 2], "text")),
    Cancel(1),
    Unknown("kind"),
]


def test_messages_survive_together_in_order():
    assert decode(join([encode(message) for message in ALL])) == ALL


def test_an_empty_frame_is_no_message():
    assert decode(join([])) == []


def test_what_is_not_understood_does_not_hide_the_rest():
    parts = [
        encode(Leave("first")),
        msgspec.msgpack.encode({"type": "k" * 500}),
        msgspec.msgpack.encode({"type": "open", "stream": 7, "request": {"model": "m"}}),
        msgspec.msgpack.encode({"type": "emit", "stream": 8, "event": {"type": "new"}}),
        encode(Leave("last")),
    ]
    first, unknown, opened, emitted, last = decode(join(parts))
    assert (first, last) == (Leave("first"), Leave("last"))
    assert unknown == UnknownKind("k" * MAX_KIND)
    assert isinstance(opened, Malformed)
    assert (opened.opened, opened.stream) == (True, 7)
    assert "request_id" in opened.why
    assert isinstance(emitted, Malformed)
    assert (emitted.opened, emitted.stream) == (False, 8)


def test_fields_of_a_newer_version_are_ignored():
    assert decode(join([msgspec.msgpack.encode({"type": "leave", "reason": "x", "until": 5})])) == [Leave("x")]


@pytest.mark.parametrize(
    "part",
    [
        b"\xc1",
        b"\x01",
        b"\x91" * 3000,
        msgspec.msgpack.encode({"reason": "no type"}),
        msgspec.msgpack.encode({"type": None}),
        msgspec.msgpack.encode({"type": "leave", "reason": 5}),
        msgspec.msgpack.encode({"type": "open", "stream": "seven"}),
        msgspec.msgpack.encode({"type": "open", "stream": 2**64 - 1, "request": 1})[:-1],
    ],
)
def test_a_message_that_makes_no_sense_breaks_the_frame(part):
    with pytest.raises(FrameError):
        decode(join([part]))


def test_an_array_that_claims_too_many_messages_is_refused_before_it_is_decoded():
    for header in (b"\xdd\x7f\xff\xff\xff", b"\xdd" + (MAX_MESSAGES + 1).to_bytes(4, "big")):
        with pytest.raises(FrameError, match="more than"):
            decode(header + b"\x01" * 100)
    with pytest.raises(FrameError):
        decode(b"\xdc\xff\xff")
