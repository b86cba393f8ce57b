from __future__ import annotations

import socket

import psutil
import pytest
import trio
import trio.lowlevel
from libp2p.peer.id import ID
from multiaddr import Multiaddr

from mesh.errors import Misconfigured, Unavailable
from mesh.identity import Identity
from mesh.transport.libp2p import Libp2pTransport, admission, dialling, transport

LOCAL = "/ip4/127.0.0.1/tcp/0"


@pytest.mark.parametrize("listen", [LOCAL, LOCAL + "/ws", "/ip6/::1/tcp/0"])
async def test_bytes_travel_both_ways_between_proven_peers(mesh, echo, listen):
    alice, bob = await mesh.start(listen), await mesh.start(LOCAL)
    channel = await bob.transport.dial(alice.transport.addresses)
    await echo(channel, bytes(range(256)) * 2000)
    other = await alice.arrived()
    assert channel.peer_id == alice.identity.peer_id
    assert other.peer_id == bob.identity.peer_id
    assert channel.remote_address == alice.transport.addresses[0].rpartition("/p2p/")[0]
    assert other.remote_address.startswith(listen.rpartition("/tcp/")[0])


async def test_a_channel_and_its_connection_end_together_on_both_sides(mesh, echo, until):
    alice, bob = await mesh.start(), await mesh.start()
    channel = await bob.transport.dial(alice.transport.addresses)
    await echo(channel)
    await channel.aclose()
    await until(lambda: alice.open_connections == bob.open_connections == 0)
    with pytest.raises(trio.ClosedResourceError):
        await channel.receive_some()
    with pytest.raises(trio.ClosedResourceError):
        await channel.send_all(b"x")
    await channel.aclose()
    channel.abort()


async def test_nothing_is_lost_when_a_channel_is_closed_right_after_sending(mesh, until):
    received: list[bytes] = []

    async def collect(channel):
        received.append(b"".join([data async for data in channel]))

    alice, bob = await mesh.start(handler=collect), await mesh.start()
    data = bytes(range(256)) * 1500
    for count in range(1, 11):
        channel = await bob.transport.dial(alice.transport.addresses)
        await channel.send_all(data)
        await channel.aclose()
        await until(lambda: len(received) == count)  # noqa: B023 - awaited before the next turn
        assert received[-1] == data


async def test_the_end_of_the_other_side_ends_the_reads(mesh):
    alice, bob = await mesh.start(), await mesh.start()
    alice.hold = True
    channel = await bob.transport.dial(alice.transport.addresses)
    inbound = await alice.arrived()
    await inbound.send_all(b"last words")
    alice.released.set()
    assert await channel.receive_some() == b"last words"
    assert await channel.receive_some() == b""


async def test_many_channels_between_the_same_two_peers(mesh, echo):
    alice, bob = await mesh.start(), await mesh.start()
    channels = [await bob.transport.dial(alice.transport.addresses) for _ in range(6)]
    channels += [await alice.transport.dial(bob.transport.addresses) for _ in range(2)]
    for channel in channels:
        await echo(channel)
    await channels[0].aclose()
    for channel in channels[1:]:
        await echo(channel)


async def test_both_dial_each_other_at_once(mesh, echo):
    alice, bob = await mesh.start(), await mesh.start()
    channels = []

    async def dial(one, other):
        channels.append(await one.transport.dial(other.transport.addresses))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(dial, alice, bob)
        nursery.start_soon(dial, bob, alice)
    for channel in channels:
        await echo(channel)


async def test_addresses_are_real_and_loopback_comes_first(mesh):
    peer = await mesh.start("/ip4/0.0.0.0/tcp/0", "/ip4/127.0.0.1/tcp/0/ws")
    addresses = peer.transport.addresses
    assert all(address.endswith(f"/p2p/{peer.identity.peer_id}") for address in addresses)
    assert not any("/tcp/0/" in address or "0.0.0.0" in address for address in addresses)
    loopback = [address.startswith("/ip4/127.") for address in addresses]
    assert loopback == sorted(loopback, reverse=True)
    assert loopback[:2] == [True, True]
    assert sum("/ws/" in address for address in addresses) == 1


async def test_there_are_no_addresses_before_it_listens():
    assert Libp2pTransport(Identity.generate(), [LOCAL]).addresses == []


@pytest.mark.parametrize(
    "listen",
    [
        "",
        "nonsense",
        "/ip4/127.0.0.1",
        "/ip4/300.0.0.1/tcp/1",
        "/ip4/127.0.0.1/tcp/70000",
        "/ip4/127.0.0.1/tcp/x",
        "/ip4/127.0.0.1/udp/1/quic-v1",
        "/ip4/127.0.0.1/tcp/1/wss",
        "/dns4/localhost/tcp/1",
        "/ip4/127.0.0.1/tcp/1/p2p/" + Identity.from_seed(bytes(32)).peer_id,
        "/ip4/127.0.0.1/tcp/1" + "/ws" * 500,
    ],
)
def test_an_address_that_cannot_be_listened_on_is_refused_with_an_example(listen):
    with pytest.raises(Misconfigured, match=r"cannot listen on .*for example /ip4/0\.0\.0\.0/tcp/4001"):
        Libp2pTransport(Identity.generate(), [listen])


async def test_a_taken_port_is_named_also_when_we_took_it(mesh):
    peer = await mesh.start()
    address = peer.transport.addresses[0].rpartition("/p2p/")[0]
    with pytest.raises(Misconfigured, match=rf"cannot listen on {address}: another program uses this port; stop it, or"):
        await Libp2pTransport(Identity.generate(), [LOCAL, address]).run(peer.handle)


async def test_an_address_of_another_machine_is_named(mesh):
    with pytest.raises(Misconfigured, match="no such address"):
        await mesh.start("/ip4/203.0.113.7/tcp/0")


async def test_a_port_is_free_again_after_the_end(mesh, echo):
    first = await mesh.start()
    address = first.transport.addresses[0].rpartition("/p2p/")[0]
    caller = await mesh.start()
    channel = await caller.transport.dial(first.transport.addresses)
    first.scope.cancel()
    assert not await drained(channel)
    second = await mesh.start(address)
    await echo(await caller.transport.dial(second.transport.addresses))


async def test_the_end_of_run_closes_every_socket_and_cancels_handlers(mesh, until):
    alice, bob = await mesh.start(), await mesh.start()
    alice.hold = True
    channels = [await bob.transport.dial(alice.transport.addresses) for _ in range(5)]
    await alice.arrived(5)
    port = int(alice.transport.addresses[0].split("/")[4])
    alice.scope.cancel()
    for channel in channels:
        assert not await drained(channel)
    await until(lambda: bob.open_connections == 0)
    assert alice.open_connections == 0
    assert alice.transport.addresses == []
    held = [
        entry for entry in psutil.Process().net_connections("tcp") if entry.laddr.port == port and entry.status != "TIME_WAIT"
    ]
    assert held == []


class Names:
    """`both.test` has an address of each family; only the IPv6 one answers."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002 - trio's name
        both = [(socket.AF_INET, ("127.0.0.9", port)), (socket.AF_INET6, ("::1", port, 0, 0))]
        assert host == b"both.test"
        return [(one, socket.SOCK_STREAM, 6, "", target) for one, target in both if family in (0, one)]

    async def getnameinfo(self, sockaddr, flags):
        raise NotImplementedError


@pytest.fixture
async def names():
    before = trio.socket.set_custom_hostname_resolver(Names())
    yield
    trio.socket.set_custom_hostname_resolver(before)


async def test_names_lead_to_addresses_of_their_family(mesh, echo, names):
    alice, bob = await mesh.start("/ip6/::1/tcp/0"), await mesh.start()
    rest = alice.transport.addresses[0].removeprefix("/ip6/::1")
    for kind in ("dns", "dns6"):
        await echo(await bob.transport.dial([f"/{kind}/both.test{rest}"]))
    with pytest.raises(Unavailable, match=r"/dns4/both\.test/.*: connection refused"):
        await bob.transport.dial([f"/dns4/both.test{rest}"])


async def test_an_ipv6_address_is_dialled_beside_an_ipv4_one(mesh, echo, closed_port):
    alice, bob = await mesh.start("/ip6/::1/tcp/0"), await mesh.start()
    dead = f"/ip4/127.0.0.1/tcp/{closed_port}/p2p/{alice.identity.peer_id}"
    channel = await bob.transport.dial([dead, *alice.transport.addresses])
    await echo(channel)
    assert channel.remote_address == alice.transport.addresses[0].rpartition("/p2p/")[0]


async def test_dialling_needs_a_running_transport():
    identity = Identity.generate()
    stopped = Libp2pTransport(identity, [LOCAL])
    with pytest.raises(RuntimeError, match="does not run"):
        await stopped.dial([f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.generate().peer_id}"])


@pytest.fixture
def deaf():
    """The port of a socket that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


async def test_a_dead_and_a_deaf_address_do_not_hide_the_good_one(mesh, echo, deaf, closed_port):
    alice, bob = await mesh.start(), await mesh.start()
    suffix = f"/p2p/{alice.identity.peer_id}"
    dead = [f"/ip4/127.0.0.1/tcp/{port}{suffix}" for port in (closed_port, deaf)]
    channel = await bob.transport.dial([*dead, *alice.transport.addresses])
    await echo(channel)
    await channel.aclose()


async def test_the_losers_of_a_dial_are_closed(mesh, echo, until, deaf):
    alice, bob = await mesh.start(LOCAL, LOCAL, LOCAL), await mesh.start()
    suffix = f"/p2p/{alice.identity.peer_id}"
    channel = await bob.transport.dial([f"/ip4/127.0.0.1/tcp/{deaf}{suffix}", *alice.transport.addresses])
    await echo(channel)
    await until(lambda: bob.open_connections == alice.open_connections == 1)


async def test_a_failure_moves_on_at_once_and_success_waits_for_nobody(mesh, monkeypatch, closed_port):
    monkeypatch.setattr(dialling, "HEAD_START", 1000.0)
    monkeypatch.setattr(dialling, "DIAL_TIMEOUT", 1000.0)
    alice, bob = await mesh.start(), await mesh.start()
    dead = f"/ip4/127.0.0.1/tcp/{closed_port}/p2p/{alice.identity.peer_id}"
    with trio.fail_after(20):
        await bob.transport.dial([dead, *alice.transport.addresses])


async def test_a_peer_that_was_down_can_be_dialled_as_soon_as_it_is_up(mesh, echo, closed_port):
    identity, bob = Identity.generate(), await mesh.start()
    address = f"/ip4/127.0.0.1/tcp/{closed_port}"
    with pytest.raises(Unavailable, match="connection refused"):
        await bob.transport.dial([f"{address}/p2p/{identity.peer_id}"])
    alice = await mesh.start(address, identity=identity)
    await echo(await bob.transport.dial(alice.transport.addresses))


async def test_a_peer_that_never_answers_is_given_up_and_named(mesh, monkeypatch, until, deaf):
    monkeypatch.setattr(dialling, "DIAL_TIMEOUT", 0.4)
    bob = await mesh.start()
    address = f"/ip4/127.0.0.1/tcp/{deaf}/p2p/{Identity.generate().peer_id}"
    with pytest.raises(Unavailable, match=f"{address}: it takes the connection, then says nothing"):
        await bob.transport.dial([address])
    await until(lambda: bob.open_connections == 0)


async def test_another_peer_at_the_address_is_refused(mesh, until):
    alice, bob = await mesh.start(), await mesh.start()
    impostor = alice.transport.addresses[0].replace(alice.identity.peer_id, Identity.generate().peer_id)
    with pytest.raises(Unavailable, match="another peer answers there"):
        await bob.transport.dial([impostor])
    await until(lambda: bob.open_connections == alice.open_connections == 0)
    assert alice.inbound == []


async def test_what_is_wrong_with_each_address_is_said(mesh):
    bob = await mesh.start()
    stranger = Identity.generate().peer_id
    with pytest.raises(Unavailable) as caught:
        await bob.transport.dial(
            [
                f"/ip4/127.0.0.1/udp/1/quic-v1/p2p/{stranger}",
                "nonsense",
                "/ip4/127.0.0.1/tcp/1",
                f"/ip4/127.0.0.1/tcp/1/p2p/{bob.identity.peer_id}",
                f"/ip4/127.0.0.1/tcp/1/p2p/{stranger}",
                f"/ip4/127.0.0.1/tcp/1/p2p/{'x' * 2000}",
            ]
        )
    message = caught.value.message
    assert "only /ip4, /ip6 or /dns" in message
    assert "nonsense: it is not a multiaddr" in message
    assert "/ip4/127.0.0.1/tcp/1: it does not end in /p2p/" in message
    assert "that is this peer itself" in message
    assert "it names another peer than the first address" in message
    assert "it is too long" in message
    assert len(message) < 4000


async def test_no_address_at_all(mesh):
    bob = await mesh.start()
    with pytest.raises(Unavailable, match="no address of it is known"):
        await bob.transport.dial([])


async def test_no_more_addresses_than_the_bound_are_tried(mesh):
    bob = await mesh.start()
    peer_id = Identity.generate().peer_id
    with pytest.raises(Unavailable) as caught:
        await bob.transport.dial([f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id}" for port in range(1, 60)])
    assert caught.value.message.count("connection refused") == dialling.MAX_ADDRESSES


async def test_a_cancelled_dial_leaves_nothing(mesh, until, deaf):
    bob = await mesh.start()
    with trio.move_on_after(0.2):
        await bob.transport.dial([f"/ip4/127.0.0.1/tcp/{deaf}/p2p/{Identity.generate().peer_id}"])
    await until(lambda: bob.open_connections == 0)


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


async def drained(stream) -> bytes:
    """What comes last before the other side closes."""
    data = b"x"
    with trio.fail_after(20):
        while data:
            try:
                data = await stream.receive_some()
            except trio.BrokenResourceError:
                data = b""
    await stream.aclose()
    return data


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
