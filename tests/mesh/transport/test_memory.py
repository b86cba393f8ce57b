"""The memory network: order, back-pressure, latency, and every kind of trouble on demand."""

from __future__ import annotations

from contextlib import asynccontextmanager

import pytest
import trio

from mesh.errors import Misconfigured, Unavailable
from mesh.identity import Identity
from mesh.transport.memory import CAPACITY, CONNECT_LIMIT, MemoryNetwork, MemoryTransport


@asynccontextmanager
async def ends(network, handler=None):
    """(near channel, far channel, near transport, far transport)."""
    send, receive = trio.open_memory_channel(1)

    async def serve(channel):
        await send.send(channel)
        await trio.sleep_forever()

    near, far = MemoryTransport(Identity.generate(), network), MemoryTransport(Identity.generate(), network)
    async with trio.open_nursery() as nursery:
        await nursery.start(near.run, serve)
        await nursery.start(far.run, handler or serve)
        channel = await near.dial(far.addresses)
        yield channel, (None if handler else await receive.receive()), near, far
        nursery.cancel_scope.cancel()


async def idle(channel):
    await trio.sleep_forever()


async def read(channel, size):
    data = b""
    while len(data) < size:
        piece = await channel.receive_some(4096)
        assert piece
        data += piece
    return data


async def test_bytes_arrive_in_order_both_ways(autojump_clock):
    async with ends(MemoryNetwork()) as (near, far, one, two):
        assert near.peer_id == two.identity.peer_id
        assert far.peer_id == one.identity.peer_id
        await near.send_all(b"abc")
        await near.send_all(b"def")
        await far.send_all(b"xyz")
        assert await read(far, 6) == b"abcdef"
        assert await near.receive_some(2) == b"xy"
        assert await near.receive_some(2) == b"z"


async def test_a_writer_waits_for_its_reader(autojump_clock):
    async with ends(MemoryNetwork()) as (near, far, *_):
        data = bytes(range(256)) * (CAPACITY // 64)
        with trio.move_on_after(10) as limit:
            await near.send_all(data)
        assert limit.cancelled_caught
        received = await read(far, CAPACITY)
        assert received == data[:CAPACITY]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(near.send_all, data)
            assert await read(far, len(data)) == data


async def test_latency_is_on_the_clock(autojump_clock):
    async with ends(MemoryNetwork(latency=0.25)) as (near, far, *_):
        started = trio.current_time()
        await near.send_all(b"one")
        assert trio.current_time() == started
        await read(far, 3)
        assert trio.current_time() - started == pytest.approx(0.25)


async def test_a_clean_end_lets_the_other_side_read_on(autojump_clock):
    async with ends(MemoryNetwork(latency=0.1)) as (near, far, *_):
        await near.send_all(b"last words")
        await near.aclose()
        near.abort()
        assert await read(far, 10) == b"last words"
        assert await far.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await far.send_all(b"too late")
        with pytest.raises(trio.ClosedResourceError):
            await near.send_all(b"closed")
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()


async def test_an_abort_breaks_pending_reads_and_writes_on_both_sides(autojump_clock):
    async with ends(MemoryNetwork()) as (near, far, *_):

        async def broken(kind, call, *args):
            with pytest.raises(kind):
                await call(*args)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(broken, trio.BrokenResourceError, far.receive_some)
            nursery.start_soon(broken, trio.BrokenResourceError, far.send_all, bytes(CAPACITY + 1))
            await trio.sleep(1)
            near.abort()
            near.abort()
        with pytest.raises(trio.ClosedResourceError):
            await near.receive_some()


async def test_an_abort_ends_our_own_pending_read(autojump_clock):
    async with ends(MemoryNetwork()) as (near, *_), trio.open_nursery() as nursery:

        async def closed():
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_some()

        nursery.start_soon(closed)
        await trio.sleep(1)
        near.abort()


async def test_a_killed_peer_is_gone_and_its_address_free(autojump_clock):
    network = MemoryNetwork()
    async with ends(network) as (near, _far, one, two):
        network.kill(two.identity.peer_id)
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        with pytest.raises(Unavailable, match="refused"):
            await one.dial(two.addresses)
        with pytest.raises(Unavailable, match="refused"):
            await two.dial(one.addresses)
        again = MemoryTransport(two.identity, network, number=2)
        assert again.addresses == two.addresses
        async with trio.open_nursery() as nursery:
            await nursery.start(again.run, idle)
            assert (await one.dial(two.addresses)).peer_id == two.identity.peer_id
            nursery.cancel_scope.cancel()


async def test_a_hung_peer_is_silent_until_it_resumes(autojump_clock):
    network = MemoryNetwork()
    async with ends(network) as (near, far, one, two):
        network.hang(two.identity.peer_id)
        await near.send_all(b"hello?")
        with trio.move_on_after(100) as limit:
            await far.receive_some()
        assert limit.cancelled_caught
        started = trio.current_time()
        with pytest.raises(Unavailable, match="no answer"):
            await one.dial(two.addresses)
        assert trio.current_time() - started == pytest.approx(CONNECT_LIMIT)
        network.resume(two.identity.peer_id)
        assert await read(far, 6) == b"hello?"


async def test_a_reader_that_waits_in_silence_still_sees_death(autojump_clock):
    network = MemoryNetwork()
    async with ends(network) as (near, _far, _one, two):
        network.hang(two.identity.peer_id)

        async def broken():
            with pytest.raises(trio.BrokenResourceError):
                await near.receive_some()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(broken)
            await trio.sleep(1)
            network.kill(two.identity.peer_id)


async def test_a_partition_is_between_two_only(autojump_clock):
    network = MemoryNetwork()
    async with ends(network) as (near, far, one, two):
        third = MemoryTransport(Identity.generate(), network)
        async with trio.open_nursery() as nursery:
            await nursery.start(third.run, idle)
            network.partition(one.identity.peer_id, two.identity.peer_id)
            await near.send_all(b"x")
            with trio.move_on_after(10) as limit:
                await far.receive_some()
            assert limit.cancelled_caught
            assert (await one.dial(third.addresses)).peer_id == third.identity.peer_id
            network.heal(two.identity.peer_id, one.identity.peer_id)
            assert await far.receive_some() == b"x"
            nursery.cancel_scope.cancel()


async def test_the_first_address_that_answers_wins_and_failures_are_named(autojump_clock):
    network = MemoryNetwork()
    async with ends(network) as (_near, _far, one, two):
        dead = f"/memory/99/p2p/{two.identity.peer_id}"
        assert (await one.dial([dead, *two.addresses])).peer_id == two.identity.peer_id
        with pytest.raises(Unavailable, match="/memory/99"):
            await one.dial([dead])
        with pytest.raises(Unavailable, match="none was given"):
            await one.dial([])


async def test_a_taken_number_is_misconfigured(autojump_clock):
    network = MemoryNetwork()
    async with ends(network):
        with pytest.raises(Misconfigured, match="taken"):
            await MemoryTransport(Identity.generate(), network, number=1).run(idle)


async def test_a_handler_that_fails_ends_its_channel_alone(autojump_clock):
    async def broken(channel):
        raise RuntimeError("handler")

    async with ends(MemoryNetwork(), broken) as (near, _far, one, two):
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        assert [str(error) for error in two.failures] == ["handler"]
        assert (await one.dial(two.addresses)).peer_id == two.identity.peer_id


async def test_a_handler_that_returns_ends_its_channel_cleanly(autojump_clock):
    async def polite(channel):
        await channel.send_all(b"bye")

    async with ends(MemoryNetwork(), polite) as (near, *_):
        assert await read(near, 3) == b"bye"
        assert await near.receive_some() == b""
