from __future__ import annotations

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError

from mesh.transport.libp2p import carrier as carrier_module
from mesh.transport.libp2p.carrier import Carrier
from mesh.transport.libp2p.medium import MAX_BACKLOG


@pytest.fixture
async def pair():
    """A carrier that runs, and the plain stream at its other end."""
    async with trio.open_nursery() as nursery:
        accepted: list[trio.SocketStream] = []
        arrived = trio.Event()

        async def accept(stream):
            accepted.append(stream)
            arrived.set()
            await trio.sleep_forever()

        listeners = await nursery.start(trio.serve_tcp, accept, 0)
        carrier = Carrier(await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1]))
        await arrived.wait()
        nursery.start_soon(carrier.run)
        yield carrier, accepted[0]
        carrier.abort()
        await trio.aclose_forcefully(accepted[0])
        nursery.cancel_scope.cancel()


async def test_a_read_gives_exactly_what_was_asked_for(pair):
    carrier, other = pair
    for piece in (b"ab", b"c", b"def"):
        await other.send_all(piece)
    assert await carrier.read(4) == b"abcd"
    assert await carrier.read(0) == b""
    assert await carrier.read() == b"ef"


async def test_a_read_gives_less_only_at_the_end(pair):
    carrier, other = pair
    await other.send_all(b"ab")
    await other.send_eof()
    assert await carrier.read(100) == b"ab"
    assert await carrier.read(100) == b""


async def test_a_cancelled_read_loses_nothing(pair):
    carrier, other = pair
    await other.send_all(b"abc")
    with trio.move_on_after(0.1) as patience:
        await carrier.read(4)
    assert patience.cancelled_caught
    await other.send_all(b"d")
    assert await carrier.read(4) == b"abcd"


async def test_a_write_never_waits_and_everything_arrives_in_order(pair):
    carrier, other = pair
    with trio.CancelScope() as scope:
        scope.cancel()
        for number in range(3000):
            await carrier.write(number.to_bytes(4, "big") * 250)
    assert not scope.cancelled_caught
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(carrier.drained)
        while len(received) < 3_000_000:
            received += await other.receive_some()
    assert received == b"".join(number.to_bytes(4, "big") * 250 for number in range(3000))


async def test_more_than_the_bound_is_never_kept(pair):
    carrier, _ = pair
    while len(carrier._backlog) < MAX_BACKLOG * 7 // 8:
        await carrier.write(bytes(MAX_BACKLOG // 8))
    with pytest.raises(ConnectionClosedError, match="does not read"):
        await carrier.write(bytes(MAX_BACKLOG // 4))
    assert carrier.closed
    assert not carrier._backlog


async def test_a_socket_that_takes_nothing_is_given_up(pair, monkeypatch):
    monkeypatch.setattr(carrier_module, "STALL", 0.2)
    carrier, _ = pair
    while len(carrier._backlog) < 1_000_000:
        carrier.send(bytes(100_000))
    with trio.fail_after(20):
        await carrier.drained()
    assert carrier.closed
    with pytest.raises(ConnectionClosedError):
        carrier.send(b"x")


async def test_closing_wakes_readers(pair):
    carrier, _ = pair
    async with trio.open_nursery() as nursery:

        async def read():
            with pytest.raises(ConnectionClosedError):
                await carrier.read(1)

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        await carrier.close()
        carrier.abort()
    assert not carrier.broken


async def test_a_reset_is_known_as_one(pair):
    carrier, other = pair
    other.setsockopt(1, 13, carrier_module._LINGER_NONE)
    await other.aclose()
    with trio.fail_after(20), pytest.raises(ConnectionClosedError):
        await carrier.read(1)
    assert carrier.broken


async def test_a_reset_while_something_is_unsent_ends_quietly(pair):
    carrier, other = pair
    while len(carrier._backlog) < 1_000_000:
        carrier.send(bytes(100_000))
    other.setsockopt(1, 13, carrier_module._LINGER_NONE)
    await other.aclose()
    with trio.fail_after(20):
        await carrier.drained()
    assert carrier.closed
    assert carrier.broken


async def test_a_flood_does_not_keep_other_tasks_from_running(pair):
    carrier, other = pair
    turns = 0

    async def flood():
        while True:
            await other.send_all(bytes(1024 * 1024))

    async def tick():
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flood)
        nursery.start_soon(tick)
        for _ in range(100):
            await carrier.read(64 * 1024)
        nursery.cancel_scope.cancel()
    assert turns >= 100


async def test_a_stream_whose_peer_has_gone_is_left_to_its_owner():
    async def accept(stream):
        stream.setsockopt(1, 13, carrier_module._LINGER_NONE)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, accept, 0)
        stream = await trio.open_tcp_stream("127.0.0.1", listeners[0].socket.getsockname()[1])
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(OSError, match="not connected"):
            Carrier(stream)
        await stream.aclose()
        nursery.cancel_scope.cancel()
