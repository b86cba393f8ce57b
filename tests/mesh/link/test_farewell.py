"""How a link ends in good order, and by its own side's cancelling."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel

from mesh.errors import Conflict, Unavailable
from mesh.link import Link
from mesh.messages.link import (
    Leave,
    Unknown,
)
from mesh.transport.base import Channel


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
