"""The writer: what it puts into one frame, in which order, and when it gives up."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mesh.framing import FrameError, FrameReader
from mesh.link.codec import MAX_MESSAGE, decode, encode
from mesh.link.pieces import Assembly
from mesh.link.pulse import INTERVAL
from mesh.link.writer import FRAME_TARGET, MAX_PENDING, STALL_LIMIT, LinkWriter
from mesh.messages.inference import Delta
from mesh.messages.link import Cancel, Emit, Heartbeat, Leave, Piece


class Wire:
    """A channel that keeps what is written, or blocks."""

    def __init__(self, *, blocked=False):
        self.frames = FrameReader()
        self.written = []
        self.sizes = []
        self.on_write = lambda: None
        self.aborted = False
        self.closed = trio.Event()
        self.blocked = blocked

    async def send_all(self, data):
        await trio.lowlevel.checkpoint()
        if self.blocked:
            await self.closed.wait()
            raise trio.BrokenResourceError
        self.sizes.append(len(data))
        self.written.append([decode(body) for body in self.frames.feed(data)])
        self.on_write()

    @property
    def messages(self):
        return [message for frame in self.written for body in frame for message in body]

    def abort(self):
        self.aborted = True
        self.closed.set()


def writer_on(wire):
    return LinkWriter(wire, lambda: encode(Heartbeat(1.0)))


def kinds(frame):
    return [type(message) for body in frame for message in body]


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


async def test_heartbeats_come_first_then_control_then_events(autojump_clock):
    wire = Wire()
    writer = writer_on(wire)
    writer.put_event(encode(Emit(1, Delta(0, [0], "a"))))
    writer.put(encode(Leave("x")))
    writer.put_event(encode(Emit(1, Delta(1, [1], "b"))))
    writer.put(encode(Cancel(2)))
    writer.beat()
    await drain(writer)
    (frame,) = wire.written
    (messages,) = frame
    assert messages == [Heartbeat(1.0), Leave("x"), Cancel(2), *(Emit(1, Delta(n, [n], "ab"[n])) for n in (0, 1))]


async def test_a_frame_stops_at_its_target_and_loses_nothing(autojump_clock):
    wire = Wire()
    writer = writer_on(wire)
    events = [Emit(1, Delta(number, [], "x" * (FRAME_TARGET // 5))) for number in range(20)]
    for event in events:
        writer.put_event(encode(event))
    await drain(writer)
    assert all(size <= FRAME_TARGET + 9 for size in wire.sizes)
    assert wire.messages == events
    assert len(wire.sizes) == 5


async def test_a_large_message_goes_in_pieces_and_others_between_them(autojump_clock):
    wire = Wire()
    writer = writer_on(wire)
    writer.pieces = True
    large = encode(Leave("y" * 1_000_000))
    writer.put(large)

    def more():
        if writer.pending > 100_000:
            writer.beat()
            writer.put_event(encode(Emit(1, Delta(0, [], "x"))))

    wire.on_write = more
    await drain(writer)
    assert max(wire.sizes) <= FRAME_TARGET
    assembly = Assembly()
    wholes = [assembly.add(message) for message in wire.messages if isinstance(message, Piece)]
    assert wholes[-1] == large
    assert wholes[:-1] == [None] * (len(wholes) - 1)
    between = [kinds(frame) for frame in wire.written[1:-3]]
    assert between == [[Heartbeat, Emit, Piece]] * (len(wire.written) - 4)
    assert len(between) > 20


async def test_without_the_feature_a_large_message_is_a_frame_of_its_own(autojump_clock):
    wire = Wire()
    writer = writer_on(wire)
    large, small = Leave("y" * 1_000_000), Emit(1, Delta(0, [], "x"))
    writer.put(encode(large))
    writer.put_event(encode(small))
    writer.beat()
    await drain(writer)
    assert wire.written == [[[Heartbeat(1.0), small]], [[large]]]


async def test_a_large_message_overtakes_no_event_and_nothing_in_its_lane_overtakes_it(autojump_clock):
    wire = Wire()
    writer = writer_on(wire)
    writer.pieces = True
    before = [Emit(1, Delta(number, [], "x" * 20_000)) for number in range(30)]
    for event in before:
        writer.put_event(encode(event))
    writer.put_event(encode(Emit(1, Delta(30, [], "y" * 100_000))))
    writer.put_large(encode(Cancel(1)))
    await drain(writer)
    order = [type(message) for message in wire.messages]
    assert order[:30] == [Emit] * 30
    assert order[30:] == [Piece] * (len(order) - 31) + [Cancel]
    assert writer.pending == 0


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

    async def beat():
        while True:
            await trio.sleep(INTERVAL)
            writer.beat()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        with pytest.raises(trio.BrokenResourceError):
            await writer.run()
        nursery.cancel_scope.cancel()
    assert STALL_LIMIT <= trio.current_time() - started <= STALL_LIMIT + 2
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
