"""A link: hello, requests in both directions, liveness, farewell, and everything a bad peer can send."""

from __future__ import annotations

import logging
import math
import struct

import msgspec
import pytest
import trio
import trio.lowlevel

from mesh.errors import BackendFailed, BadRequest, Busy, Conflict, Denied, MeshError, NotFound, Unavailable
from mesh.framing import MAX_FRAME, frame
from mesh.identity import Identity
from mesh.link import Link
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
    Refused,
    Unknown,
)
from mesh.messages.record import SealedRecord
from mesh.transport.base import Channel


async def refusal_of(kit, near, far):
    """What both sides raise when their hellos do not fit."""
    outcomes = {}

    async def run(name, link):
        try:
            await link.run()
        except MeshError as error:
            outcomes[name] = error

    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        nursery.start_soon(run, "near", Link(here, near, dialled=True))
        nursery.start_soon(run, "far", Link(there, far, dialled=False))
    return outcomes


# Hello


async def test_both_sides_know_each_other(autojump_clock, kit):
    async with kit.links() as pair:
        assert pair.near.peer_id == kit.far.peer_id
        assert pair.near.record.name == "a node"
        assert pair.near.dialled
        assert not pair.far.dialled
        assert pair.far.hello.instance == "one"


async def test_another_mesh_is_refused_on_both_sides(autojump_clock, kit, side):
    outcomes = await refusal_of(kit, side(kit.near), side(kit.far, "elsewhere"))
    for error in outcomes.values():
        assert isinstance(error, Denied)
        assert error.code == "other_mesh"
        assert "'test'" in error.message
        assert "'elsewhere'" in error.message
    assert set(outcomes) == {"near", "far"}


async def test_a_record_of_somebody_else_is_refused(autojump_clock, kit, side, hello):
    stranger = Identity.generate()
    far = msgspec.structs.replace(hello(kit.far), record=hello(stranger).record)
    async with kit.channels() as (here, there):
        await there.send_all(frame(msgspec.msgpack.encode([far])))
        with pytest.raises(Denied) as caught:
            await Link(here, side(kit.near), dialled=True).run()
    assert caught.value.code == "bad_record"


async def test_a_forged_record_is_refused(autojump_clock, kit, side, hello):
    good = hello(kit.far)
    forged = msgspec.structs.replace(good, record=SealedRecord(good.record.payload, bytes(64)))
    async with kit.channels() as (here, there):
        await there.send_all(frame(msgspec.msgpack.encode([forged])))
        with pytest.raises(Denied, match="signature"):
            await Link(here, side(kit.near), dialled=True).run()


async def test_the_owner_may_refuse_and_the_other_side_learns_why(autojump_clock, kit, side):
    def admit(link):
        raise Conflict("two of you", code="same_identity")

    outcomes = {}

    async def far(link):
        try:
            await link.run()
        except Conflict as error:
            outcomes["far"] = error

    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        nursery.start_soon(far, Link(there, side(kit.far), dialled=False))
        with pytest.raises(Conflict):
            await Link(here, side(kit.near, admit=admit), dialled=True).run()
    assert outcomes["far"].code == "same_identity"
    assert "two of you" in outcomes["far"].message


async def test_no_hello_within_the_limit(autojump_clock, kit, side):
    async with kit.channels() as (here, _there):
        started = trio.current_time()
        with pytest.raises(Unavailable, match="did not say hello"):
            await Link(here, side(kit.near), dialled=True).run()
        assert trio.current_time() - started == pytest.approx(5, abs=0.1)


@pytest.mark.parametrize(
    "first",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack(">I", MAX_FRAME + 1),
        frame(b"\xc1"),
        frame(msgspec.msgpack.encode([Leave("early")])),
        frame(msgspec.msgpack.encode([{"type": "hello", "mesh": 5}])),
        frame(b"\x91" * 5000),
    ],
)
async def test_garbage_instead_of_a_hello(autojump_clock, kit, side, first):
    async with kit.channels() as (here, there):
        await there.send_all(first)
        with pytest.raises(Unavailable) as caught:
            await Link(here, side(kit.near), dialled=True).run()
    assert caught.value.code == "no_hello"


async def test_the_other_side_hangs_up_before_its_hello(autojump_clock, kit, side):
    async with kit.channels() as (here, there):
        await there.aclose()
        with pytest.raises(Unavailable, match="closed the connection"):
            await Link(here, side(kit.near), dialled=True).run()


async def test_a_refusal_is_cut_to_one_bounded_line(autojump_clock, kit, side):
    async with kit.channels() as (here, there):
        await there.send_all(frame(msgspec.msgpack.encode([Refused("x" * 500, "a\nb\r\n" + "c" * 5000)])))
        with pytest.raises(Denied) as caught:
            await Link(here, side(kit.near), dialled=True).run()
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 400
    assert len(caught.value.code) == 64


# Requests


async def test_a_request_travels_and_its_events_come_back(autojump_clock, kit, side, words, ask, done):
    async with kit.links(far=side(kit.far, service=words())) as pair:
        events = []
        await pair.near.infer(ask("one two three"), events.append)
        assert events == [
            Accepted(1, 7), Delta(0, [0], "one"), Delta(1, [1], "two"), Delta(2, [2], "three"), done,
        ]  # fmt: skip
        assert pair.near.in_flight == 0
        assert pair.far.serving == 0


async def test_both_sides_ask_at_once(autojump_clock, kit, side, words, ask):
    near, far = side(kit.near, service=words()), side(kit.far, service=words())
    async with kit.links(near, far) as pair, trio.open_nursery() as nursery:
        texts = {}

        async def run(name, link, prompt):
            events = []
            await link.infer(ask(prompt), events.append)
            texts[name] = [event.text for event in events if isinstance(event, Delta)]

        for number in range(50):
            nursery.start_soon(run, number, pair.near, f"near {number}")
            nursery.start_soon(run, -number - 1, pair.far, f"far {number}")
    assert texts == {n: ["near", str(n)] for n in range(50)} | {-n - 1: ["far", str(n)] for n in range(50)}


async def test_cancelling_the_caller_stops_the_service(autojump_clock, kit, side, words, ask):
    service = words()
    service.gate = trio.Event()
    async with kit.links(far=side(kit.far, service=service)) as pair:
        with trio.move_on_after(0.5):
            await pair.near.infer(ask(), lambda _: None)
        assert pair.near.in_flight == 0
        await trio.sleep(0.1)
        assert service.cancelled == 1
        assert pair.far.serving == 0


async def test_an_error_of_the_service_arrives_whole(autojump_clock, kit, side, ask):
    class Full:
        async def infer(self, request, emit):
            raise Busy("all slots taken", code="queue_full", retry_after=3.5)

    load = {"words": ModelLoad("ready", running=4, waiting=2)}
    async with kit.links(far=side(kit.far, service=Full(), load=lambda: load)) as pair:
        with pytest.raises(Busy, match="all slots taken") as caught:
            await pair.near.infer(ask(), lambda _: None)
        assert (caught.value.code, caught.value.retry_after) == ("queue_full", 3.5)


async def test_a_fail_carries_the_load_of_its_model(autojump_clock, kit, side, ask):
    class Full:
        async def infer(self, request, emit):
            raise Busy("all slots taken")

    load = {"words": ModelLoad("ready", running=4, waiting=2)}
    async with kit.raw(side(kit.near, service=Full(), load=lambda: load)) as (_, raw, _outcomes):
        await raw.say(Open(1, ask()))
        fail = (await raw.hear(Emit)).event
    assert (fail.running, fail.waiting) == (4, 2)


async def test_an_unexpected_exception_is_logged_and_not_told(autojump_clock, kit, side, ask, caplog):
    class Broken:
        async def infer(self, request, emit):
            async with trio.open_nursery():
                raise RuntimeError("the secret path")

    async with kit.links(far=side(kit.far, service=Broken())) as pair:
        with pytest.raises(BackendFailed) as caught, caplog.at_level(logging.ERROR):
            await pair.near.infer(ask(), lambda _: None)
        assert "secret" not in caught.value.message
        assert "the secret path" in caplog.text
        assert not pair.far.closed.is_set()


async def test_a_mesh_error_inside_a_nursery_is_still_itself(autojump_clock, kit, side, ask):
    class Nested:
        async def infer(self, request, emit):
            async with trio.open_nursery():
                raise NotFound("no such model")

    async with kit.links(far=side(kit.far, service=Nested())) as pair:
        with pytest.raises(NotFound, match="no such model"):
            await pair.near.infer(ask(), lambda _: None)


async def test_a_service_that_stops_without_a_result(autojump_clock, kit, side, ask):
    class Silent:
        async def infer(self, request, emit):
            emit(Accepted())

    async with kit.links(far=side(kit.far, service=Silent())) as pair:
        with pytest.raises(BackendFailed, match="without a result"):
            await pair.near.infer(ask(), lambda _: None)


async def test_nothing_follows_done(autojump_clock, kit, side, ask, done):
    class Chatty:
        async def infer(self, request, emit):
            emit(done)
            emit(Delta(0, [1], "late"))
            emit(done)
            raise RuntimeError("too late")

    async with kit.raw(side(kit.near, service=Chatty())) as (_, raw, _outcomes):
        await raw.say(Open(1, ask()), Open(2, ask()))
        first, second = await raw.hear(Emit), await raw.hear(Emit)
        assert {first.stream: first.event, second.stream: second.event} == {1: done, 2: done}
        with trio.move_on_after(2.5):
            assert await raw.hear(Emit) is None


async def test_a_peer_without_a_service_says_not_found(autojump_clock, kit, ask):
    async with kit.links() as pair:
        with pytest.raises(NotFound, match="words"):
            await pair.near.infer(ask(), lambda _: None)


async def test_a_caller_whose_emit_fails_ends_alone(autojump_clock, kit, side, words, ask):
    service = words()
    async with kit.links(far=side(kit.far, service=service)) as pair:

        def broken(event):
            if isinstance(event, Delta):
                raise BufferError("full")

        with pytest.raises(BufferError):
            await pair.near.infer(ask("a b c d e f"), broken)
        events = []
        await pair.near.infer(ask("still"), events.append)
        assert events[1].text == "still"


async def test_the_257th_request_is_busy_on_the_asking_side(autojump_clock, kit, side, words, ask):
    service = words()
    service.gate = trio.Event()
    async with kit.links(far=side(kit.far, service=service)) as pair, trio.open_nursery() as nursery:
        for _ in range(256):
            nursery.start_soon(pair.near.infer, ask(), lambda _: None)
        await trio.sleep(0.1)
        assert pair.near.in_flight == 256
        with pytest.raises(Busy):
            await pair.near.infer(ask(), lambda _: None)
        service.gate.set()


async def test_a_request_over_a_frame_is_refused_before_it_is_sent(autojump_clock, kit, side, words, ask):
    async with kit.links(far=side(kit.far, service=words())) as pair:
        with pytest.raises(BadRequest) as caught:
            await pair.near.infer(ask("x" * MAX_FRAME), lambda _: None)
        assert caught.value.status == 413
        await pair.near.infer(ask("fine"), lambda _: None)


async def test_large_requests_wait_for_room_instead_of_breaking_the_link(autojump_clock, kit, side, words, ask):
    async with kit.links(far=side(kit.far, service=words())) as pair, trio.open_nursery() as nursery:
        for _ in range(8):
            nursery.start_soon(pair.near.infer, ask("x" * 3_000_000), lambda _: None)
    assert pair.near.reason == ""


# Liveness


async def test_rtt_is_measured_without_the_time_the_other_side_held_it(autojump_clock, kit):
    kit.network.latency = 0.03
    async with kit.links() as pair:
        await trio.sleep(5)
        assert pair.near.rtt == pytest.approx(0.06, abs=0.005)
        assert pair.far.rtt == pytest.approx(0.06, abs=0.005)


async def test_load_travels_with_heartbeats(autojump_clock, kit, side):
    load = {"m": ModelLoad("loading")}
    async with kit.links(far=side(kit.far, load=lambda: load)) as pair:
        await trio.sleep(0.1)
        assert pair.near.load == {"m": ModelLoad("loading")}
        load["m"] = ModelLoad("ready", running=3)
        pair.far.beat()
        await trio.sleep(0.1)
        assert pair.near.load["m"].running == 3


async def test_three_seconds_of_silence_are_death(autojump_clock, kit, side, words, ask):
    service = words()
    service.gate = trio.Event()
    async with kit.links(far=side(kit.far, service=service)) as pair:
        await trio.sleep(10)
        assert not pair.near.closed.is_set()
        kit.network.hang(kit.far.peer_id)
        started = trio.current_time()
        with pytest.raises(Unavailable) as caught:
            await pair.near.infer(ask(), lambda _: None)
        assert caught.value.code == "link_lost"
        assert "silent" in caught.value.message
        assert trio.current_time() - started <= 3
        with pytest.raises(Unavailable):
            await pair.near.infer(ask(), lambda _: None)


async def test_any_byte_is_a_sign_of_life(autojump_clock, kit):
    async with kit.raw() as (link, raw, _):
        for byte in frame(msgspec.msgpack.encode([Leave("slowly")])):
            await raw.channel.send_all(bytes([byte]))
            await trio.sleep(2)
        assert not link.closed.is_set()
        assert link.leaving


async def test_death_of_the_other_side_ends_requests_in_both_directions(autojump_clock, kit, side, words, ask):
    service = words()
    service.gate = trio.Event()
    async with kit.links(near=side(kit.near, service=service)) as pair:

        async def far():
            with pytest.raises(Unavailable):
                await pair.far.infer(ask(), lambda _: None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(far)
            await trio.sleep(0.1)
            assert service.running == 1
            kit.network.kill(kit.far.peer_id)
        await pair.near.closed.wait()
        assert service.running == 0
        assert service.cancelled == 1


async def test_an_impossible_echo_is_not_a_round_trip(autojump_clock, kit):
    async with kit.raw() as (link, raw, _):
        for echo in (math.nan, math.inf, -math.inf, 1e300, trio.current_time() + 100):
            await raw.say(Heartbeat(math.nan, echo))
        await trio.sleep(0.1)
        assert link.rtt is None
        assert not link.closed.is_set()


async def test_a_peer_that_does_not_read_is_cut_off(autojump_clock, kit):
    async with kit.raw() as (link, _raw, outcomes):
        for _ in range(20):
            if link.closed.is_set():
                break
            link.send(Unknown("x" * 1_000_000))
            await trio.lowlevel.checkpoint()
        await link.closed.wait()
        await trio.lowlevel.checkpoint()
        assert link.reason == "the other side does not read"
        assert outcomes == {"near": None}


async def test_a_peer_that_beats_but_does_not_read_a_little_is_cut_off_too(autojump_clock, kit):
    async with kit.raw() as (link, raw, _):
        link.send(Unknown("x" * 200_000))
        with trio.move_on_after(60):
            while not link.closed.is_set():
                try:
                    await raw.say(Heartbeat(0.0))
                except trio.BrokenResourceError:
                    break
                await trio.sleep(1)
        with trio.fail_after(1):
            await link.closed.wait()
        assert link.reason == "the other side does not read"


# Farewell


async def test_leave_lets_requests_finish_and_takes_no_new_ones(autojump_clock, kit, side, words, ask, done):
    service = words()
    service.gate = trio.Event()
    async with kit.links(far=side(kit.far, service=service)) as pair, trio.open_nursery() as nursery:
        events = []
        nursery.start_soon(pair.near.infer, ask("a b"), events.append)
        await trio.sleep(0.1)
        pair.far.send(Leave("done for today"))
        await trio.sleep(0.1)
        assert pair.near.leaving
        with pytest.raises(Unavailable) as caught:
            await pair.near.infer(ask(), lambda _: None)
        assert caught.value.code == "leaving"
        service.gate.set()
    assert events[-1] == done


async def test_close_says_leave_and_ends(autojump_clock, kit):
    async with kit.links() as pair:
        await pair.near.close("enough")
        await pair.far.closed.wait()
        assert pair.far.leaving
        assert pair.near.closed.is_set()
        assert pair.near.reason == "enough"
        assert pair.far.reason == "the other side closed it"


class Reluctant(Channel):
    """Closes as real transports do: reads fail at once, the clean end takes a while, an abort meanwhile loses what travels."""

    def __init__(self, inner: Channel) -> None:
        self.peer_id = inner.peer_id
        self.remote_address = inner.remote_address
        self._inner = inner
        self._closing = trio.Event()

    async def send_all(self, data) -> None:
        await self._inner.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._inner.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes=None) -> bytes:
        data = b""
        async with trio.open_nursery() as nursery:

            async def give_up() -> None:
                await self._closing.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(give_up)
            data = await self._inner.receive_some(max_bytes)
            nursery.cancel_scope.cancel()
        if self._closing.is_set():
            raise trio.ClosedResourceError("we close it")
        return data

    async def aclose(self) -> None:
        self._closing.set()
        await trio.sleep(0.5)
        await self._inner.aclose()

    def abort(self) -> None:
        self._inner.abort()


async def test_the_last_words_of_a_close_arrive_though_they_take_a_while(autojump_clock, kit, side):
    kit.network.latency = 0.1
    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        near, far = Link(Reluctant(here), side(kit.near), dialled=True), Link(there, side(kit.far), dialled=False)
        async with trio.open_nursery() as starting:
            starting.start_soon(nursery.start, near.run)
            starting.start_soon(nursery.start, far.run)
        await near.close("enough")
        await far.closed.wait()
        assert far.leaving


async def test_close_does_not_wait_for_a_hung_peer(autojump_clock, kit):
    async with kit.links() as pair:
        kit.network.hang(kit.far.peer_id)
        pair.near.send(Unknown("x" * 1_000_000))
        started = trio.current_time()
        await pair.near.close("enough")
        assert trio.current_time() - started <= 2.5
        await pair.near.closed.wait()


async def test_a_refusal_after_hello_ends_the_link_with_its_error(autojump_clock, kit):
    async with kit.links() as pair:
        await pair.near.refuse("replaced", "a newer one is here")
        await pair.far.closed.wait()
        await trio.sleep(0.1)
        assert isinstance(pair.outcomes["far"], Conflict)
        assert pair.outcomes["far"].code == "replaced"
        assert pair.outcomes["near"] is None


async def test_cancelling_run_ends_everything(autojump_clock, kit, side, words, ask):
    service = words()
    service.gate = trio.Event()
    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        far = Link(there, side(kit.far, service=service), dialled=False)
        nursery.start_soon(far.run)
        async with trio.open_nursery() as scope:
            link = await scope.start(Link(here, side(kit.near), dialled=True).run)
            scope.start_soon(_expect_loss, link, ask())
            await trio.sleep(0.1)
            assert service.running == 1
            scope.cancel_scope.cancel()
        await far.closed.wait()
        assert service.running == 0


async def _expect_loss(link, request):
    with pytest.raises((Unavailable, trio.Cancelled)) as caught:
        await link.infer(request, lambda _: None)
    raise caught.value if isinstance(caught.value, trio.Cancelled) else AssertionError


# What a bad peer may send


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
