"""TLS over one socket: what the ends of `test_channel.py` do not show."""

from __future__ import annotations

import socket
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from mesh.transport.direct.certificate import Certificate, client_context
from mesh.transport.direct.tls import UNSENT, TlsStream


@asynccontextmanager
async def sockets():
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        near = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
        yield near, await listener.accept()


@asynccontextmanager
async def shaken():
    """Both ends after their handshake."""
    async with sockets() as (here, there):
        near, far = TlsStream(here, client_context()), TlsStream(there, Certificate().context, server_side=True)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(near.do_handshake)
                nursery.start_soon(far.do_handshake)
            yield near, far
        finally:
            near.close()
            far.close()


async def read_all(stream):
    received = bytearray()
    while data := await stream.receive_some():
        received += data
    return bytes(received)


async def test_what_one_end_says_the_other_hears_until_the_end():
    async with shaken() as (near, far):
        assert len(near.getpeercert()) > 100
        assert far.getpeercert() == b""
        for data in (b"x", b"", bytearray(b"y" * 100_000), memoryview(b"z")):
            await near.send_all(data)
        await far.send_all(b"there")
        assert await near.receive_some(3) == b"the"
        assert await near.receive_some() == b"re"
        near.send_eof()
        assert await read_all(far) == b"x" + b"y" * 100_000 + b"z"
        assert await far.receive_some() == b""


async def test_a_write_waits_for_its_reader_and_little_is_left_to_the_system():
    async with shaken() as (near, far):
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            assert near.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == UNSENT
        data = bytes(16 * 1024 * 1024)
        with trio.move_on_after(0.3) as limit:
            await near.send_all(data)
        assert limit.cancelled_caught
        with trio.fail_after(10):
            assert 0 < len(await far.receive_some()) <= len(data)


async def test_garbage_breaks_the_connection():
    async with shaken() as (near, far):
        far.socket.send(b"\x17\x03\x03\x00\x20" + bytes(32))
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()


@pytest.mark.parametrize("garbage", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), b""])
async def test_a_handshake_with_garbage_fails(garbage):
    async with sockets() as (here, there):
        far = TlsStream(there, Certificate().context, server_side=True)
        if garbage:
            await here.send_all(garbage)
        await here.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await far.do_handshake()
        far.close()


async def test_a_reset_is_not_a_clean_end():
    async with shaken() as (near, far):
        far.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        far.close()
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            await near.send_all(b"x")


async def test_closing_wakes_who_waits_and_may_be_repeated():
    async with shaken() as (near, _far), trio.open_nursery() as nursery:

        async def read():
            with pytest.raises(trio.ClosedResourceError):
                await near.receive_some()

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        near.close()
        near.close()


async def test_a_flood_does_not_keep_others_from_running():
    async with shaken() as (near, far), trio.open_nursery() as nursery:
        turns = 0

        async def flood():
            while True:
                await far.send_all(bytes(60_000))
                await trio.lowlevel.checkpoint()

        async def read():
            while True:
                await near.receive_some()

        nursery.start_soon(flood)
        nursery.start_soon(read)
        while turns < 100:
            await trio.lowlevel.checkpoint()
            turns += 1
        nursery.cancel_scope.cancel()


async def test_a_cancelled_call_does_nothing():
    async with shaken() as (near, far):
        with trio.CancelScope() as scope:
            scope.cancel()
            await near.send_all(b"lost")
        with trio.CancelScope() as scope:
            scope.cancel()
            await far.receive_some()
        await near.send_all(b"found")
        assert await far.receive_some() == b"found"
