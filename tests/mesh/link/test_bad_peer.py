"""What a bad peer may send, and that it hurts its own link alone."""

from __future__ import annotations

import struct

import msgspec
import pytest
import trio
import trio.lowlevel

from mesh.errors import BackendFailed, BadRequest
from mesh.framing import MAX_FRAME, frame
from mesh.messages.inference import Accepted, Delta, Done, Fail, InferenceRequest
from mesh.messages.link import (
    Cancel,
    Emit,
    Heartbeat,
    Hello,
    Leave,
    ModelLoad,
    Open,
    Records,
    Unknown,
)


@pytest.mark.parametrize(
    "body",
    [
        b"\xc1",
        b"",
        msgspec.msgpack.encode({"type": "leave"}),
        msgspec.msgpack.encode([1, 2, 3]),
        msgspec.msgpack.encode([{"stream": 1}]),
        msgspec.msgpack.encode([{"type": 7}]),
        msgspec.msgpack.encode([{"type": "heartbeat", "sent": "now"}]),
        msgspec.msgpack.encode([{"type": "open", "request": {}}]),
        msgspec.msgpack.encode([{"type": "cancel", "stream": "all"}]),
        msgspec.msgpack.encode([Heartbeat(0.0, None, {str(n): ModelLoad("ready") for n in range(1001)})]),
        b"\x91\x82\xa4type\xa2\xff\xff\xa6stream\x01",
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\x00\x10\x00\x00" + b"\x01" * 0x100000,
    ],
)
async def test_a_frame_that_breaks_the_protocol_ends_its_link_alone(autojump_clock, kit, body, caplog):
    async with kit.raw() as (link, raw, outcomes):
        await raw.channel.send_all(frame(body))
        await link.closed.wait()
        await trio.lowlevel.checkpoint()
        assert outcomes == {"near": None}
        assert "broke the protocol" in link.reason


async def test_a_second_hello_ends_the_link(autojump_clock, kit, hello):
    async with kit.raw() as (link, raw, _):
        await raw.say(hello(kit.far))
        await link.closed.wait()
        assert "second hello" in link.reason


async def test_an_oversized_frame_ends_its_link(autojump_clock, kit):
    async with kit.raw() as (link, raw, _):
        await raw.channel.send_all(struct.pack(">I", 0xFFFFFFFF))
        await link.closed.wait()
        assert "over the limit" in link.reason


async def test_an_unknown_kind_is_answered_once_and_ignored(autojump_clock, kit):
    async with kit.raw() as (link, raw, _):
        new = msgspec.msgpack.encode({"type": "gossip", "stream": 3, "more": [1, {"deep": None}]})
        await raw.say(new, Leave("x"), new)
        assert (await raw.hear(Unknown)).kind == "gossip"
        assert link.leaving
        for number in range(1000):
            await raw.say(msgspec.msgpack.encode({"type": f"kind {number} " + "x" * 500}))
        with trio.move_on_after(1.5):
            await raw.hear(Hello)
        answers = [message for message in raw.received if isinstance(message, Unknown)]
        assert 1 <= len(answers) <= 64
        assert all(len(answer.kind) <= 64 for answer in answers)


async def test_a_malformed_request_fails_alone(autojump_clock, kit, side, words, ask):
    async with kit.raw(side(kit.near, service=words())) as (link, raw, _):
        nested: object = "x"
        for _ in range(3000):
            nested = [nested]
        deep = b"\x83\xa4type\xa4open\xa6stream\x05\xa7request\x83\xaarequest_id\xa1r\xa5model\xa1m\xa8messages\x91\x81\xa1a"
        await raw.say(
            msgspec.msgpack.encode({"type": "open", "stream": 4, "request": {"request_id": 3, "model": "m"}}),
            Open(6, ask("fine")),
        )
        answers = [await raw.hear(Emit) for _ in range(4)]
        assert answers[0].stream == 4
        assert answers[0].event.kind == "BadRequest"
        assert [answer.stream for answer in answers[1:]] == [6, 6, 6]
        assert not link.closed.is_set()
        await raw.say(deep + b"\x91" * 3000 + b"\xc0")
        await trio.sleep(1)
        assert link.closed.is_set() or (await raw.hear(Emit)).stream == 5


async def test_a_number_in_use_fails_and_the_link_lives(autojump_clock, kit, side, words, ask):
    service = words()
    service.gate = trio.Event()
    async with kit.raw(side(kit.near, service=service)) as (_link, raw, _):
        await raw.say(Open(1, ask("one")))
        assert isinstance((await raw.hear(Emit)).event, Accepted)
        await raw.say(Open(1, ask("two")))
        fail = await raw.hear(Emit)
        assert (fail.stream, fail.event.kind) == (1, "BadRequest")
        await trio.sleep(0.1)
        assert service.running == 0
        service.gate.set()
        await raw.say(Open(1, ask("three")))
        assert isinstance((await raw.hear(Emit)).event, Accepted)
        assert (await raw.hear(Emit)).event.text == "three"


async def test_ten_thousand_opens_are_bounded(autojump_clock, kit, side, words, ask):
    service = words()
    service.gate = trio.Event()
    async with kit.raw(side(kit.near, service=service)) as (link, raw, _):
        peak = 0

        async def pour():
            for first in range(0, 10_000, 500):
                await raw.say(*(Open(number, ask("x")) for number in range(first, first + 500)))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pour)
            busy = accepted = 0
            while busy + accepted < 10_000:
                event = (await raw.hear(Emit)).event
                peak = max(peak, service.running)
                accepted += isinstance(event, Accepted)
                busy += isinstance(event, Fail) and event.kind == "Busy"
        assert (accepted, busy) == (256, 9_744)
        assert peak == 256
        assert not link.closed.is_set()


async def test_events_for_numbers_that_are_not_open_are_ignored(autojump_clock, kit, done):
    async with kit.raw() as (link, raw, _):
        await raw.say(Emit(9, done), Emit(-1, Delta(0, [], "")), Cancel(12), Cancel(-5), Unknown("x"))
        await trio.sleep(0.1)
        assert not link.closed.is_set()


async def test_an_event_of_the_wrong_shape_fails_its_request_alone(autojump_clock, kit, ask, done):
    async with kit.raw() as (link, raw, _), trio.open_nursery() as nursery:
        events = []

        async def first():
            with pytest.raises(BackendFailed):
                await link.infer(ask(), lambda _: None)

        nursery.start_soon(first)
        opened = await raw.hear(Open)
        nursery.start_soon(link.infer, ask(), events.append)
        other = await raw.hear(Open)
        await raw.say(
            msgspec.msgpack.encode({"type": "emit", "stream": opened.stream, "event": {"type": "telepathy"}}),
            Emit(other.stream, done),
        )
        assert (await raw.hear(Cancel)).stream == opened.stream
    assert events == [done]


async def test_a_slow_reader_that_knows_no_credit_fails_its_request_alone(autojump_clock, kit, side, ask, done):
    class Torrent:
        async def infer(self, request: InferenceRequest, emit):
            if request.prompt == "small":
                await trio.sleep(1)
                emit(done)
            for number in range(400):
                emit(Delta(number, [number], "x" * 20_000))
                await trio.lowlevel.checkpoint()
            emit(done)

    async with kit.raw(side(kit.near, service=Torrent())) as (link, raw, _):
        await raw.say(Open(1, ask("large")), Open(2, ask("small")))
        await trio.sleep(2)
        ends = {}
        while len(ends) < 2:
            message = await raw.hear(Emit)
            if isinstance(message.event, Fail | Done):
                ends[message.stream] = message.event
        assert ends[1].code == "slow_consumer"
        assert ends[2] == done
        assert not link.closed.is_set()


async def test_one_event_over_a_frame_fails_its_request_alone(autojump_clock, kit, side, ask, done):
    class Huge:
        async def infer(self, request, emit):
            emit(Delta(0, [0], "x" * MAX_FRAME))
            await trio.sleep_forever()

    async with kit.links(far=side(kit.far, service=Huge())) as pair:
        with pytest.raises(BadRequest) as caught:
            await pair.near.infer(ask(), lambda _: None)
        assert caught.value.code == "answer_too_large"


async def test_an_owner_that_fails_on_a_message_loses_that_link_only(autojump_clock, kit, side, caplog):
    async def heard(link, message):
        if isinstance(message, Records):
            raise RuntimeError("our own fault")

    async with kit.raw(side(kit.near, heard=heard)) as (link, raw, outcomes):
        await raw.say(Records([]))
        await link.closed.wait()
        await trio.lowlevel.checkpoint()
        assert outcomes == {"near": None}
        assert "our own fault" in caplog.text
