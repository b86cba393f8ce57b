"""Credit: a request whose reader is slow waits alone, memory is bounded, and what a bad peer can do with it."""

from __future__ import annotations

import msgspec
import pytest
import trio
import trio.testing

from mesh.errors import BackendFailed, BadRequest, Unavailable
from mesh.framing import FrameError
from mesh.link.credit import MAX_HELD, MAX_HELD_BY_LINK, PATIENCE, QUANTUM, WINDOW, Allowance, cost
from mesh.link.features import CREDIT
from mesh.messages.inference import Accepted, Delta, Done, Fail
from mesh.messages.link import Cancel, Credit, Emit, Open
from mesh.service import paced, room

SIZE = 10_000


class Torrent:
    """Emits as many deltas of `size` characters as the prompt says: all at once, or as the reader keeps up."""

    def __init__(self, done, *, patient=True, size=SIZE):
        self.done = done
        self.size = size
        self.patient = patient
        self.emitted = 0
        self.running = 0

    async def infer(self, request, emit):
        self.running += 1
        try:
            for number in range(int(request.prompt)):
                emit(Delta(number, [number], "x" * self.size))
                self.emitted += 1
                if self.patient:
                    await room(emit)
            emit(self.done)
            await trio.lowlevel.checkpoint()
        finally:
            self.running -= 1


class Reader:
    """A caller that reads when its gate is open."""

    def __init__(self):
        self.events = []
        self.gate = trio.Event()
        self.ended = trio.Event()
        self.emit = paced(self._take, self._room)

    def _take(self, event):
        self.events.append(event)
        if isinstance(event, Done):
            self.ended.set()

    async def _room(self):
        await self.gate.wait()

    @property
    def offsets(self):
        return [event.offset for event in self.events if isinstance(event, Delta)]


def test_more_credit_than_was_used_is_refused():
    allowance = Allowance(limited=True)
    allowance.credit -= 100
    with pytest.raises(FrameError):
        allowance.grant(101)
    allowance.grant(100)
    assert allowance.credit == WINDOW


async def test_patience_is_counted_from_the_last_credit(autojump_clock):
    allowance = Allowance(limited=True)
    allowance.credit = -10
    allowance.hold(b"x")
    started = trio.current_time()

    async def grant_a_little():
        await trio.sleep(PATIENCE - 1)
        allowance.grant(5)
        await trio.sleep(PATIENCE - 1)
        allowance.grant(20)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(grant_a_little)
        assert await allowance.changed()
    assert trio.current_time() - started == 2 * (PATIENCE - 1)
    allowance.credit = 0
    started = trio.current_time()
    assert not await allowance.changed()
    assert trio.current_time() - started == PATIENCE


async def test_a_slow_reader_makes_its_service_wait_and_nobody_else(autojump_clock, kit, side, ask, done):
    service = Torrent(done)
    async with kit.links(far=side(kit.far, service=service)) as pair, trio.open_nursery() as nursery:
        slow, fast = Reader(), Reader()
        fast.gate.set()
        nursery.start_soon(pair.near.infer, ask("500"), slow.emit)
        await trio.sleep(5)
        assert WINDOW // SIZE <= service.emitted <= WINDOW // SIZE + 2
        assert len(slow.offsets) * SIZE <= WINDOW + SIZE
        for _ in range(3):
            await pair.near.infer(ask("500"), fast.emit)
        assert fast.offsets == [*range(500)] * 3
        assert len(slow.offsets) * SIZE <= WINDOW + SIZE
        slow.gate.set()
    assert slow.offsets == [*range(500)]
    assert slow.events[-1] == done


async def test_small_events_cost_more_than_their_bytes(autojump_clock, kit, side, ask, done):
    service = Torrent(done, size=1)
    async with kit.links(far=side(kit.far, service=service)) as pair, trio.open_nursery() as nursery:
        slow = Reader()
        nursery.start_soon(pair.near.infer, ask("5000"), slow.emit)
        await trio.sleep(5)
        assert len(slow.offsets) <= WINDOW // cost(0)
        slow.gate.set()
    assert slow.offsets == [*range(5000)]


async def test_a_reader_that_stops_for_too_long_fails_alone(autojump_clock, kit, side, ask, done):
    service = Torrent(done)
    async with kit.links(far=side(kit.far, service=service)) as pair:
        slow = Reader()
        started = trio.current_time()
        with pytest.raises(BadRequest) as caught:
            await pair.near.infer(ask("500"), slow.emit)
        assert caught.value.code == "slow_consumer"
        assert trio.current_time() - started == pytest.approx(PATIENCE, abs=0.1)
        assert (service.running, pair.far.serving, pair.near.in_flight) == (0, 0, 0)
        slow.gate.set()
        await pair.near.infer(ask("10"), slow.emit)


async def test_a_service_that_cannot_wait_is_held_for_and_then_its_request_fails_alone(autojump_clock, kit, side, ask, done):
    service = Torrent(done, patient=False)
    fits = (WINDOW + MAX_HELD) // SIZE - 2
    async with kit.links(far=side(kit.far, service=service)) as pair, trio.open_nursery() as nursery:
        slow = Reader()
        nursery.start_soon(pair.near.infer, ask(str(fits)), slow.emit)
        await trio.sleep(1)
        assert service.emitted == fits
        assert service.running == 0
        assert pair.far.serving == 1, "what is held counts as running"
        slow.gate.set()
        with trio.fail_after(5):
            await slow.ended.wait()
        assert slow.offsets == [*range(fits)]
        with pytest.raises(BadRequest) as caught:
            await pair.near.infer(ask(str(2 * fits)), Reader().emit)
        assert caught.value.code == "slow_consumer"
        assert pair.far.serving == 0


async def test_what_one_link_holds_is_bounded(autojump_clock, kit, side, ask, done):
    service = Torrent(done, patient=False)
    each = (WINDOW + MAX_HELD) // SIZE - 2
    count = 2 * MAX_HELD_BY_LINK // MAX_HELD
    failed = []
    async with kit.links(far=side(kit.far, service=service)) as pair, trio.open_nursery() as nursery:

        async def client():
            try:
                await pair.near.infer(ask(str(each)), Reader().emit)
            except BadRequest as error:
                failed.append(error.code)

        for _ in range(count):
            nursery.start_soon(client)
        await trio.sleep(5)
        assert failed == ["slow_consumer"] * len(failed)
        assert count // 4 < len(failed) < count
        assert pair.far._served._held_bytes <= MAX_HELD_BY_LINK
        for _ in failed:
            await pair.near.infer(ask("0"), Reader().emit)
        nursery.cancel_scope.cancel()


async def test_a_cancelled_request_that_waits_is_forgotten(autojump_clock, kit, side, ask, done):
    service = Torrent(done)
    async with kit.links(far=side(kit.far, service=service)) as pair:
        with trio.move_on_after(1):
            await pair.near.infer(ask("500"), Reader().emit)
        await trio.sleep(1)
        assert (service.running, pair.far.serving, pair.far._served._held_bytes) == (0, 0, 0)


async def test_an_event_larger_than_the_window_and_long_answers_pass(autojump_clock, kit, side, ask, done):
    texts = ["x" * (4 * WINDOW), *["y" * 100] * 20_000, "z" * (2 * WINDOW)]

    class Long:
        async def infer(self, request, emit):
            emit(Accepted())
            for index, text in enumerate(texts):
                emit(Delta(index, [index], text))
                await room(emit)
            emit(done)

    async with kit.links(far=side(kit.far, service=Long())) as pair:
        events = []
        with trio.fail_after(20):
            await pair.near.infer(ask(), events.append)
        assert [event.text for event in events if isinstance(event, Delta)] == texts


async def test_an_error_follows_what_waits(autojump_clock, kit, side, ask):
    class Failing:
        async def infer(self, request, emit):
            for number in range(50):
                emit(Delta(number, [number], "x" * SIZE))
            raise BackendFailed("it broke", code="broke")

    async with kit.links(far=side(kit.far, service=Failing())) as pair, trio.open_nursery() as nursery:
        slow = Reader()
        caught = []

        async def client():
            try:
                await pair.near.infer(ask(), slow.emit)
            except BackendFailed as error:
                caught.append((error.code, len(slow.offsets)))

        nursery.start_soon(client)
        await trio.sleep(1)
        assert caught == []
        slow.gate.set()
    assert caught == [("broke", 50)]


async def test_the_end_of_a_request_does_not_wait_for_its_reader(autojump_clock, kit, side, ask, done):
    service = Torrent(done)
    async with kit.links(far=side(kit.far, service=service)) as pair:
        slow = Reader()
        with trio.fail_after(1):
            await pair.near.infer(ask(str(2 * QUANTUM // SIZE)), slow.emit)
        assert slow.events[-1] == done


async def test_a_lost_link_ends_a_request_whose_reader_is_slow(autojump_clock, kit, side, ask, done):
    async with kit.links(far=side(kit.far, service=Torrent(done))) as pair, trio.open_nursery() as nursery:
        ended = []

        async def client():
            try:
                await pair.near.infer(ask("500"), Reader().emit)
            except Unavailable as error:
                ended.append(error.code)

        nursery.start_soon(client)
        await trio.sleep(1)
        pair.far._channel.abort()
        await trio.sleep(1)
        assert ended == ["link_lost"]


# A bad peer


@pytest.mark.parametrize("amount", [1, WINDOW, 2**40, 2**63])
async def test_more_credit_than_the_window_ends_the_link_alone(autojump_clock, kit, side, words, ask, amount):
    service = words()
    service.gate = trio.Event()
    near = side(kit.near, service=service)
    async with kit.links(near=near) as other, kit.raw(near, features=[CREDIT]) as (link, raw, _):
        await raw.say(Open(1, ask("one")), Credit(1, WINDOW + amount))
        await link.closed.wait()
        assert "broke the protocol" in link.reason
        assert not other.near.closed.is_set()
        await trio.sleep(0.1)
        assert service.running == 0


@pytest.mark.parametrize("amount", [0, -1, -(2**63), 1.5, "1", None])
async def test_credit_that_is_none_ends_the_link(autojump_clock, kit, amount):
    async with kit.raw(features=[CREDIT]) as (link, raw, _):
        await raw.say(msgspec.msgpack.encode({"type": "credit", "stream": 1, "amount": amount}))
        await link.closed.wait()
        assert "broke the protocol" in link.reason


async def test_credit_from_a_peer_that_did_not_tell_the_feature_ends_the_link(autojump_clock, kit):
    async with kit.raw() as (link, raw, _):
        await raw.say(Credit(1, 1))
        await link.closed.wait()
        assert "broke the protocol" in link.reason


async def test_credit_for_a_request_that_has_ended_is_ignored(autojump_clock, kit):
    async with kit.raw(features=[CREDIT]) as (link, raw, _):
        await raw.say(Credit(9, 100_000))
        await trio.sleep(1)
        assert not link.closed.is_set()


async def test_a_node_that_sends_more_than_its_credit_loses_that_request(autojump_clock, kit, ask, done):
    async with kit.raw(features=[CREDIT]) as (link, raw, _), trio.open_nursery() as nursery:
        slow = Reader()

        async def client():
            with pytest.raises(BackendFailed, match="credit"):
                await link.infer(ask(), slow.emit)

        nursery.start_soon(client)
        opened = await raw.hear(Open)
        for number in range(2 * WINDOW // SIZE):
            await raw.say(Emit(opened.stream, Delta(number, [number], "x" * SIZE)))
        assert (await raw.hear(Cancel)).stream == opened.stream
        assert len(slow.offsets) * SIZE <= WINDOW + SIZE
        assert not link.closed.is_set()


async def test_credit_is_given_back_as_the_reader_reads(autojump_clock, kit, ask, done):
    async with kit.raw(features=[CREDIT]) as (link, raw, _), trio.open_nursery() as nursery:
        reader = Reader()
        nursery.start_soon(link.infer, ask(), reader.emit)
        opened = await raw.hear(Open)
        event = Emit(opened.stream, Delta(0, [0], "x" * (QUANTUM - 10)))
        await raw.say(event)
        await trio.sleep(2)
        assert not any(isinstance(message, Credit) for message in raw.received)
        reader.gate.set()
        assert await raw.hear(Credit) == Credit(opened.stream, cost(len(msgspec.msgpack.encode(event))))
        await raw.say(Emit(opened.stream, Fail("Busy", "x", "busy", 429)), Emit(opened.stream, Done("stop", *done_parts(done))))
        nursery.cancel_scope.cancel()


def done_parts(done):
    return done.usage, done.performance
