"""Requests over a link, in both directions."""

from __future__ import annotations

import logging

import pytest
import trio
import trio.lowlevel

from mesh.errors import BackendFailed, BadRequest, Busy, NotFound
from mesh.framing import MAX_FRAME
from mesh.messages.inference import Accepted, Delta
from mesh.messages.link import (
    Emit,
    ModelLoad,
    Open,
)


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
