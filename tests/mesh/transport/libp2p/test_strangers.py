"""How many connections there may be, and whose they are; what junk on one of them does."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.transport.libp2p import admission, dialling, transport
from tests.mesh.transport.libp2p.draining import drained

LOCAL = "/ip4/127.0.0.1/tcp/0"


async def test_more_than_the_allowed_connections_are_turned_away_until_one_ends(mesh, echo, monkeypatch):
    monkeypatch.setattr(dialling, "DIAL_TIMEOUT", 2.0)
    alice, bob = await mesh.start(max_inbound=2), await mesh.start()
    first, _second = [await bob.transport.dial(alice.transport.addresses) for _ in range(2)]
    with pytest.raises(Unavailable):
        await bob.transport.dial(alice.transport.addresses)
    await first.aclose()
    await echo(await dial_until_taken(bob, alice))


async def dial_until_taken(bob, alice):
    while True:
        try:
            return await bob.transport.dial(alice.transport.addresses)
        except Unavailable:
            await trio.sleep(0.05)


async def test_strangers_who_prove_nothing_lose_their_place(mesh, echo, monkeypatch, until):
    monkeypatch.setattr(transport, "HANDSHAKE_TIMEOUT", 0.3)
    monkeypatch.setattr(transport, "MAX_HANDSHAKES", 3)
    alice, bob = await mesh.start(), await mesh.start()
    port = int(alice.transport.addresses[0].split("/")[4])
    silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(8)]
    for stream in silent:
        assert not await drained(stream)
    assert alice.open_connections == 0
    monkeypatch.setattr(transport, "HANDSHAKE_TIMEOUT", 10.0)
    await echo(await bob.transport.dial(alice.transport.addresses))


@pytest.mark.parametrize(("listen", "request_start"), [(LOCAL, b"\x13/multi"), (LOCAL + "/ws", b"GET / HTTP/1.1\r\nHost: ")])
async def test_who_takes_its_time_over_the_handshake_is_not_waited_for(mesh, monkeypatch, until, listen, request_start):
    monkeypatch.setattr(transport, "HANDSHAKE_TIMEOUT", 0.4)
    alice = await mesh.start(listen)
    stream = await trio.open_tcp_stream("127.0.0.1", int(alice.transport.addresses[0].split("/")[4]))
    with trio.fail_after(20):
        with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - whichever byte comes too late
            await stream.send_all(request_start)
            while True:
                await stream.send_all(b"s")
                await trio.sleep(0.02)
    await until(lambda: alice.open_connections == 0)
    await stream.aclose()


async def test_a_newcomer_is_heard_while_silent_strangers_hold_every_place(mesh, echo, monkeypatch):
    monkeypatch.setattr(transport, "MAX_HANDSHAKES", 4)
    alice, bob = await mesh.start(), await mesh.start()
    port = int(alice.transport.addresses[0].split("/")[4])
    silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(12)]
    await echo(await bob.transport.dial(alice.transport.addresses))
    for stream in silent:
        await stream.aclose()


async def test_connections_without_a_channel_make_room_for_a_newcomer(mesh, stock, echo, until):
    alice, bob = await mesh.start(max_inbound=2), await mesh.start()
    channel = await bob.transport.dial(alice.transport.addresses)
    async with stock() as first, stock() as second:
        address = Multiaddr(alice.transport.addresses[0].rpartition("/p2p/")[0])
        idle = await first.get_network().dial_addr(address, ID.from_base58(alice.identity.peer_id))
        assert alice.open_connections == 2
        await second.get_network().dial_addr(address, ID.from_base58(alice.identity.peer_id))
        await until(lambda: idle.is_closed and alice.open_connections == 2)
    await echo(channel)


async def test_a_peer_that_connects_in_a_loop_is_refused_and_others_are_not(mesh, echo, monkeypatch):
    monkeypatch.setattr(admission, "PEER_BURST", 5)
    monkeypatch.setattr(admission, "PEER_RATE", 0.01)
    alice, bad, good = await mesh.start(), await mesh.start(), await mesh.start()
    standing = await good.transport.dial(alice.transport.addresses)
    taken = 0
    with pytest.raises(Unavailable), trio.fail_after(20):  # noqa: PT012 - whichever is too many
        while True:
            await (await bad.transport.dial(alice.transport.addresses)).aclose()
            taken += 1
    assert taken == 5
    await echo(standing)
    await echo(await good.transport.dial(alice.transport.addresses))


@pytest.mark.parametrize("listen", [LOCAL, LOCAL + "/ws"])
@pytest.mark.parametrize(
    "junk",
    [
        b"\x00" * 1000,
        b"\xff" * 100_000,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\x00\x20" + b"\x01" * 32 + b"\xff\xff" + b"\x02" * 70_000,
        b"\x13/multistream/1.0.0\n" + b"\x03na\n" * 5000,
    ],
)
async def test_junk_ends_its_own_connection_only(mesh, echo, until, junk, listen, monkeypatch):
    monkeypatch.setattr(transport, "HANDSHAKE_TIMEOUT", 1.0)
    alice, bob = await mesh.start(listen), await mesh.start()
    stream = await trio.open_tcp_stream("127.0.0.1", int(alice.transport.addresses[0].split("/")[4]))
    try:
        await stream.send_all(junk)
        await stream.send_eof()
    except trio.BrokenResourceError:
        pass
    await drained(stream)
    await until(lambda: alice.open_connections == 0)
    monkeypatch.setattr(transport, "HANDSHAKE_TIMEOUT", 10.0)
    await echo(await bob.transport.dial(alice.transport.addresses))


@pytest.mark.parametrize(
    "said", [b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n" + b"x" * 200, b"SSH-2.0-x\r\n" * 20, b"\x00" * 500]
)
async def test_another_program_behind_an_address_is_said_in_our_words(mesh, nursery, said):
    async def answer(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.send_all(said)
            await drained(stream)

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    nursery.start_soon(trio.serve_listeners, answer, listeners)
    alice = await mesh.start()
    with pytest.raises(Unavailable, match=r"it does not answer as a libp2p peer$"):
        await alice.transport.dial([f"/ip4/127.0.0.1/tcp/{port}/p2p/{Identity.generate().peer_id}"])
