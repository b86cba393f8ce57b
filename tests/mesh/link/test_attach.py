"""Requests that go on over another link: what the link itself does for them."""

from __future__ import annotations

import pytest
import trio

from mesh.errors import NotFound, Unavailable
from mesh.link.features import CREDIT, PIECES
from mesh.messages.inference import Accepted, Delta, Fail, Kept
from mesh.messages.link import Attach, Emit, Open
from mesh.service import lost

WANTED = Attach(keep=b"secret", tenant="somebody", tokens=2)


class Shelf:
    """A service that keeps, and remembers how its readers left."""

    def __init__(self, request, done) -> None:
        self.request = request
        self.done = done
        self.asked: list[Attach] = []
        self.ends: list[bool] = []

    async def infer(self, request, emit) -> None:
        emit(Accepted(kept=True))
        try:
            await trio.sleep_forever()
        finally:
            self.ends.append(lost(emit))

    async def attach(self, wanted, emit) -> None:
        self.asked.append(wanted)
        if not wanted.follow:
            emit(Kept(self.request, [7]))
            return
        emit(Delta(2, [2], "three"))
        emit(self.done)


@pytest.fixture
def shelf(ask, done):
    return Shelf(ask("one two three"), done)


async def test_an_answer_goes_on_where_the_opener_says(autojump_clock, kit, side, shelf, done):
    async with kit.links(far=side(kit.far, service=shelf)) as pair:
        events: list = []
        await pair.near.attach(WANTED, events.append)
        assert events == [Delta(2, [2], "three"), done]
        assert [(one.keep, one.tenant, one.tokens, one.follow) for one in shelf.asked] == [(b"secret", "somebody", 2, True)]
        assert pair.near.in_flight == pair.far.serving == 0


async def test_a_look_ends_with_what_is_kept(autojump_clock, kit, side, shelf):
    async with kit.links(far=side(kit.far, service=shelf)) as pair:
        events: list = []
        await pair.near.attach(Attach(keep=b"secret", tenant="somebody", follow=False), events.append)
        assert events == [Kept(shelf.request, [7])]
        assert pair.near.in_flight == pair.far.serving == 0


async def test_a_service_that_keeps_nothing_says_so(autojump_clock, kit, side, words):
    async with kit.links(far=side(kit.far, service=words())) as pair:
        for link in (pair.near, pair.far):
            with pytest.raises(NotFound) as caught:
                await link.attach(WANTED, lambda _: None)
            assert caught.value.code == "stream_not_found"


async def test_an_older_peer_is_not_asked(autojump_clock, kit):
    async with kit.raw(features={CREDIT, PIECES}) as (link, raw, _):
        with pytest.raises(NotFound, match="keeps no streams"):
            await link.attach(WANTED, lambda _: None)
        link.beat()
        await raw.more()
        assert not any(isinstance(message, Attach) for message in raw.received)


async def test_one_of_the_wrong_shape_is_refused_alone(autojump_clock, kit, side, shelf, ask):
    async with kit.raw(side(kit.near, service=shelf)) as (link, raw, _):
        await raw.say(b"\x83\xa4type\xa6attach\xa6stream\x05\xa4keep\x07")
        emit = await raw.hear(Emit)
        assert emit.stream == 5
        assert isinstance(emit.event, Fail)
        assert emit.event.kind == "BadRequest"
        await raw.say(Open(6, ask("one")))
        assert isinstance((await raw.hear(Emit)).event, Accepted)
        assert not link.closed.is_set()


async def test_the_service_learns_whether_its_reader_left_or_was_lost(autojump_clock, kit, side, shelf, ask):
    async with kit.links(far=side(kit.far, service=shelf)) as pair:
        with trio.move_on_after(0.5):
            await pair.near.infer(ask(), lambda _: None)
        await trio.sleep(0.1)
        assert shelf.ends == [False]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_until_lost, pair.near, ask())
            await trio.sleep(0.1)
            pair.network.kill(kit.near.peer_id)
            await pair.far.closed.wait()
        await trio.sleep(0.1)
        assert shelf.ends == [False, True]


async def _until_lost(link, request) -> None:
    with pytest.raises(Unavailable):
        await link.infer(request, lambda _: None)
