from __future__ import annotations

import random

import pytest

from mesh.framing import MAX_FRAME, FrameError, FrameReader, frame


def test_a_frame_is_its_length_and_its_body():
    assert frame(b"abc") == b"\x00\x00\x00\x03abc"
    assert FrameReader().feed(frame(b"abc")) == [b"abc"]


def test_bodies_come_out_whole_and_in_order_however_the_bytes_were_cut():
    bodies = [bytes([n % 256]) * (n * 37 % 1500) for n in range(200)]
    stream = b"".join(frame(body) for body in bodies)
    for seed in range(20):
        cuts = random.Random(seed)
        reader = FrameReader()
        found = []
        rest = stream
        while rest:
            size = cuts.randint(1, 4000)
            found += reader.feed(rest[:size])
            rest = rest[size:]
        assert found == bodies


def test_one_byte_at_a_time():
    reader = FrameReader()
    pieces = [reader.feed(bytes([byte])) for byte in frame(b"xyz") + frame(b"")]
    assert [body for bodies in pieces for body in bodies] == [b"xyz", b""]


def test_the_largest_frame_passes_and_one_more_byte_does_not():
    body = bytes(MAX_FRAME)
    assert FrameReader().feed(frame(body)) == [body]
    with pytest.raises(FrameError, match="over the limit"):
        frame(body + b"x")


def test_an_announced_length_over_the_limit_is_refused_before_any_of_it_is_held():
    reader = FrameReader(limit=100)
    with pytest.raises(FrameError, match="101 bytes is over the limit of 100"):
        reader.feed(b"\x00\x00\x00\x65")


def test_a_bad_frame_behind_a_good_one_is_found():
    reader = FrameReader(limit=10)
    with pytest.raises(FrameError, match="over the limit"):
        reader.feed(frame(b"good") + b"\xff\xff\xff\xff")
