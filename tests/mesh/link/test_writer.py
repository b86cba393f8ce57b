"""The writer: what it puts into one frame, in which order, and when it gives up."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mesh.framing import FrameError, FrameReader
from mesh.link.codec import MAX_MESSAGE, decode, encode
from mesh.link.writer import FRAME_TARGET, MAX_PENDING, STALL_LIMIT, Account, LinkWriter
from mesh.messages.link import Heartbeat, Leave


class Wire:
    """A channel that keeps what is written, or blocks."""

    def __init__(self, *, blocked=False):
        self.frames = FrameReader()
        self.written = []
        self.aborted = False
        self.blocked = blocked

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()
        if self.blocked:
            await trio.sleep_forever()
        self.written.append([decode(body) for body in self.frames.feed(data)])

    def abort(self):
        self.aborted = True


def writer_on(wire):
    return LinkWriter(wire, lambda: encode(Heartbeat(1.0)))


async def drain(writer):
    writer.finish()
    await writer.run()


async def test_everything_pending_is_one_write_and_heartbeats_come_first(autojump_clock):
    wire = Wire()
    writer = writer_on(wire)
    for number in range(500):
        writer.put(encode(Leave(str(number))))
    writer.beat()
    writer.beat()
    await drain(writer)
    (frame,) = wire.written
    assert frame == [[Heartbeat(1.0), *(Leave(str(number)) for number in range(500))]]
    assert writer.pending == 0


async def test_a_frame_stops_at_its_target_unless_one_message_is_larger(autojump_clock):
    wire = Wire()
    writer = writer_on(wire)
    third = encode(Leave("x" * (FRAME_TARGET // 3)))
    large = encode(Leave("y" * (2 * FRAME_TARGET)))
    for message in (third, third, third, large, third):
        writer.put(message)
    await drain(writer)
    assert [len(body) for frame in wire.written for body in frame] == [2, 1, 1, 1]


async def test_accounts_follow_what_is_written(autojump_clock):
    wire = Wire()
    writer = writer_on(wire)
    one, other = Account(), Account()
    writer.put(b"\x81\xa4type\xa5leave", one)
    writer.put(b"\x81\xa4type\xa5leave", one)
    writer.put(b"\x81\xa4type\xa5leave", other)
    assert (one.queued, other.queued, writer.pending) == (24, 12, 36)
    await drain(writer)
    assert (one.queued, other.queued, writer.pending) == (0, 0, 0)


async def test_too_much_pending_aborts_the_channel_and_drops_the_rest(autojump_clock):
    wire = Wire(blocked=True)
    writer = writer_on(wire)
    message = encode(Leave("x" * 1_000_000))
    for _ in range(20):
        writer.put(message)
    assert wire.aborted
    assert writer.stuck
    assert writer.pending == 0
    writer.put(message)
    assert writer.pending == 0
    with trio.fail_after(1):
        await writer.room()
        await writer.flush()


async def test_a_write_that_does_not_end_aborts_the_channel(autojump_clock):
    wire = Wire(blocked=True)
    writer = writer_on(wire)
    writer.put(encode(Leave("x")))
    started = trio.current_time()
    with pytest.raises(trio.BrokenResourceError):
        await writer.run()
    assert STALL_LIMIT <= trio.current_time() - started <= STALL_LIMIT + 1
    assert wire.aborted


async def test_room_waits_until_half_is_written(autojump_clock):
    wire = Wire()
    writer = writer_on(wire)
    message = encode(Leave("x" * 1_000_000))
    while writer.pending <= MAX_PENDING // 2:
        writer.put(message)
    order = []

    async def wait():
        await writer.room()
        order.append(writer.pending)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert order == []
        nursery.start_soon(drain, writer)
    assert 0 < order[0] <= MAX_PENDING // 2


async def test_a_message_over_a_frame_is_the_callers_error(autojump_clock):
    writer = writer_on(Wire())
    with pytest.raises(FrameError):
        writer.put(b"x" * (MAX_MESSAGE + 1))
    assert writer.pending == 0
