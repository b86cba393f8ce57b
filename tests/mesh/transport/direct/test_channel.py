"""One TLS connection as a channel."""

from __future__ import annotations

import socket

import pytest
import trio

BIG = bytes(range(256)) * 8192


async def read_to_the_end(channel):
    while await channel.receive_some():
        pass


async def test_much_data_arrives_whole_in_both_directions_at_once(ground):
    near, far = await ground.pair()
    received = {near: bytearray(), far: bytearray()}

    async def read(channel):
        while len(received[channel]) < len(BIG):
            received[channel] += await channel.receive_some(65536)

    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for channel in (near, far):
                nursery.start_soon(read, channel)
                nursery.start_soon(channel.send_all, BIG)
    assert received[near] == received[far] == BIG
    near.abort()


async def test_a_cancelled_read_loses_nothing(ground):
    near, far = await ground.pair()
    for number in range(20):
        with trio.move_on_after(0.001):
            await far.receive_some()
        await near.send_all(bytes([number]))
        assert await far.receive_some() == bytes([number])
    near.abort()


async def test_a_clean_close_delivers_the_last_words_though_both_sides_talk(ground):
    near, far = await ground.pair()
    heard = bytearray()

    async def listen():
        while data := await far.receive_some():
            heard.extend(data)
        far.abort()

    await far.send_all(b"unread " * 1000)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await near.send_all(BIG)
            await near.aclose()
    assert heard == BIG


async def test_a_close_releases_the_reader(ground):
    near, far = await ground.pair()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:

            async def read():
                with pytest.raises(trio.ClosedResourceError):
                    await near.receive_some()

            nursery.start_soon(read)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(near.aclose)
            assert await far.receive_some() == b""
            far.abort()


async def test_a_close_waits_a_bounded_time_for_a_peer_that_does_not_end(ground):
    near, _far = await ground.pair()
    with trio.fail_after(10):
        await near.aclose()
    with pytest.raises(trio.ClosedResourceError):
        await near.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await near.send_all(b"x")


async def test_an_abort_ends_what_is_pending_and_the_socket(ground):
    near, far = await ground.pair()
    ended = []

    async def stuck(wait, *arguments):
        with pytest.raises((trio.ClosedResourceError, trio.BrokenResourceError)):
            await wait(*arguments)
        ended.append(wait)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stuck, near.receive_some)
            nursery.start_soon(stuck, near.send_all, BIG * 8)
            await trio.sleep(0.1)
            near.abort()
            near.abort()
    assert len(ended) == 2
    assert near._tls.socket.fileno() == -1
    with pytest.raises(trio.BrokenResourceError):
        await read_to_the_end(far)


async def test_small_writes_do_not_wait_for_each_other(ground):
    near, far = await ground.pair()
    for channel in (near, far):
        assert channel._tls.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    near.abort()


async def test_waiting_for_room(ground):
    near, _far = await ground.pair()
    with trio.fail_after(5):
        await near.wait_send_all_might_not_block()
    near.abort()
