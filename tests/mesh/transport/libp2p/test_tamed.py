"""Each fault of py-libp2p 0.8.1 that could reach us, and that it does not."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.peer.id import ID
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.stream_muxer.mplex.mplex import MPLEX_PROTOCOL_ID, Mplex
from libp2p.stream_muxer.yamux import yamux
from multiaddr import Multiaddr

from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.transport.libp2p import PROTOCOL, ping, tamed, transport
from mesh.version import __version__

PING = TProtocol("/ipfs/ping/1.0.0")
IDENTIFY = TProtocol("/ipfs/id/1.0.0")


async def connect(host, peer):
    """A connection from a stock host, made by its own dialling."""
    address = Multiaddr(peer.transport.addresses[0].rpartition("/p2p/")[0])
    return await host.get_network().dial_addr(address, ID.from_base58(peer.identity.peer_id))


async def test_a_stock_peer_can_speak_to_us(mesh, stock):
    alice = await mesh.start("/ip4/127.0.0.1/tcp/0")
    async with stock() as host:
        await connect(host, alice)
        stream = await host.new_stream(ID.from_base58(alice.identity.peer_id), [TProtocol(PROTOCOL)])
        await stream.write(b"hello")
        assert await stream.read(5) == b"hello"
        assert (await alice.arrived()).peer_id == str(host.get_id())
        with pytest.raises(BaseLibp2pError):
            await host.new_stream(ID.from_base58(alice.identity.peer_id), [TProtocol("/something/else/1")])


async def test_a_stock_peer_can_identify_and_ping_us(mesh, stock):
    alice = await mesh.start()
    async with stock() as host:
        connection = await connect(host, alice)
        stream = await host.new_stream(connection.muxed_conn.peer_id, [PING])
        await stream.write(bytes(32))
        assert await stream.read(32) == bytes(32)
        identify = await host.new_stream(connection.muxed_conn.peer_id, [IDENTIFY])
        answer = await identify.read()
        assert PROTOCOL.encode() in answer
        assert f"infermesh/{__version__}".encode() in answer


async def test_nobody_is_offered_more_than_identify_ping_and_links(mesh):
    """The stock host also takes pushes of identify, which it keeps for whoever sends one."""
    alice = await mesh.start()
    assert set(alice.transport._running().get_mux().get_protocols()) == {IDENTIFY, PING, PROTOCOL}


async def test_pings_go_on_for_as_long_as_they_come_and_leave_nothing_behind(mesh, stock, until, monkeypatch):
    monkeypatch.setattr(ping, "PATIENCE", 0.5)
    alice = await mesh.start()
    async with stock() as host:
        connection = await connect(host, alice)
        stream = await host.new_stream(connection.muxed_conn.peer_id, [PING])
        for turn in range(20):
            payload = bytes([turn]) * 32
            await stream.write(payload[:7])
            await stream.write(payload[7:])
            assert await stream.read(32) == payload
        # One that is silent is ended; its connection is not.
        with pytest.raises(BaseLibp2pError), trio.fail_after(20):
            await stream.read(1)
        assert not connection.is_closed
        again = await host.new_stream(connection.muxed_conn.peer_id, [PING])
        await again.write(bytes(32))
        assert await again.read(32) == bytes(32)


async def test_a_peer_that_opens_streams_in_a_loop_is_served_slowly(mesh, stock, echo, monkeypatch):
    monkeypatch.setattr(tamed, "STREAM_BURST", 20)
    monkeypatch.setattr(tamed, "STREAM_RATE", 0.001)
    alice, bob = await mesh.start(), await mesh.start()
    channel = await bob.transport.dial(alice.transport.addresses)
    async with stock() as host:
        connection = await connect(host, alice)
        served = 0
        with trio.move_on_after(1.5):
            while True:
                stream = await host.new_stream(connection.muxed_conn.peer_id, [PING])
                await stream.reset()
                served += 1
        # The stock host may have had one or two of its own.
        assert 15 <= served <= 20
        await echo(channel)


async def test_plaintext_with_a_stolen_name_is_refused(mesh, stock, until):
    alice, victim = await mesh.start(), Identity.generate()
    keys = create_new_key_pair(victim.seed)
    async with stock(key_pair=keys, sec_opt={TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(keys)}) as host:
        host.get_network().retry_config.max_retries = 0
        with pytest.raises(BaseLibp2pError):
            await connect(host, alice)
    await until(lambda: alice.open_connections == 0)
    assert alice.inbound == []


async def test_only_noise_and_yamux_are_offered(mesh, stock):
    alice = await mesh.start()
    upgrader = alice.transport._running().swarm.upgrader
    assert list(upgrader.security_multistream.transports) == [NOISE_ID]
    assert list(upgrader.muxer_multistream.transports) == [yamux.PROTOCOL_ID]
    async with stock(muxer_opt={MPLEX_PROTOCOL_ID: Mplex}) as host:
        host.get_network().retry_config.max_retries = 0
        with pytest.raises(BaseLibp2pError):
            await connect(host, alice)


async def test_we_do_not_speak_plaintext_to_a_peer_that_offers_nothing_else(mesh, stock):
    bob = await mesh.start()
    keys = create_new_key_pair()
    async with stock(key_pair=keys, sec_opt={TProtocol(PLAINTEXT_PROTOCOL_ID): InsecureTransport(keys)}) as host:
        with pytest.raises(Unavailable):
            await bob.transport.dial([str(host.get_addrs()[0])])


async def test_a_libp2p_peer_without_our_protocol_is_named(mesh, stock, until):
    bob = await mesh.start()
    async with stock() as host:
        with pytest.raises(Unavailable, match="a libp2p peer, but not of this mesh program"):
            await bob.transport.dial([str(host.get_addrs()[0])])
    await until(lambda: bob.open_connections == 0)


async def test_places_of_ended_connections_are_free_again_for_ever(mesh, echo, until, monkeypatch):
    """The stock host takes `max_connections` less `min_connections` inbound ones in its whole life."""
    monkeypatch.setattr(tamed, "MAX_CONNECTIONS", 4)
    alice, bob = await mesh.start(max_inbound=3), await mesh.start()
    for turn in range(12):
        channel = await bob.transport.dial(alice.transport.addresses)
        await echo(channel)
        await (channel.aclose() if turn % 2 else abort(channel))
        await until(lambda: len(alice.transport._inbound) == 0)
        for peer in (alice, bob):
            await until(lambda: not peer.transport._running().swarm.connections)  # noqa: B023 - awaited in this turn


async def abort(channel):
    channel.abort()
    await trio.lowlevel.checkpoint()


async def test_nothing_of_an_ended_connection_is_kept(mesh, echo, until):
    alice, bob = await mesh.start(), await mesh.start()
    for _ in range(20):
        channel = await bob.transport.dial(alice.transport.addresses)
        await echo(channel)
        await channel.aclose()
    for peer in (alice, bob):
        swarm = peer.transport._running().swarm
        await until(lambda: peer.open_connections == 0 and not swarm.connections)  # noqa: B023 - awaited in this turn
        # What remains are the tasks that listen; SwarmConn needs a moment to notice.
        await until(lambda: len(peer.transport._nursery.child_tasks) == 1)  # noqa: B023 - awaited in this turn


@pytest.mark.parametrize("error", [RuntimeError("a bug"), ExceptionGroup("several", [ValueError()]), trio.TooSlowError()])
async def test_an_error_in_a_handler_ends_its_channel_only(mesh, echo, until, caplog, error):
    async def fail(channel):
        await channel.receive_some()
        raise error

    alice, bob = await mesh.start(handler=fail), await mesh.start()
    standing = await bob.transport.dial(alice.transport.addresses)
    for _ in range(2):
        channel = await bob.transport.dial(alice.transport.addresses)
        await channel.send_all(b"go")
        with trio.fail_after(20):
            assert await ended(channel)
    await until(lambda: alice.open_connections == 1)
    await standing.send_all(b"still here")
    assert "the handler of a channel from" in caplog.text


async def ended(channel) -> bool:
    try:
        while await channel.receive_some():
            pass
    except trio.BrokenResourceError:
        pass
    return True


async def test_a_peer_that_vanishes_while_its_handler_reads_ends_nothing_else(mesh, echo, until):
    alice, bob = await mesh.start(), await mesh.start()
    for _ in range(3):
        channel = await bob.transport.dial(alice.transport.addresses)
        await echo(channel)
        channel.abort()
    await until(lambda: alice.open_connections == 0)
    await echo(await bob.transport.dial(alice.transport.addresses))


async def test_connections_to_one_peer_are_never_trimmed(mesh, echo):
    alice, bob = await mesh.start(), await mesh.start()
    channels = []
    for _ in range(6):
        channels.append(await bob.transport.dial(alice.transport.addresses))
        for peer in (alice, bob):
            swarm = peer.transport._running().swarm
            for connection in swarm.get_connections():
                connection._created_at = 0.0  # past every grace period
    for channel in channels:
        await echo(channel)


async def test_nothing_is_dialled_behind_our_back(mesh, echo):
    alice, bob = await mesh.start(), await mesh.start()
    await echo(await bob.transport.dial(alice.transport.addresses))
    for peer in (alice, bob):
        swarm = peer.transport._running().swarm
        assert swarm.notifees == []
        assert swarm.transport_manager.get_transports() == []
        assert swarm.peerstore.peers_with_addrs() == []


async def test_a_second_channel_on_one_connection_is_refused(mesh, stock, until):
    alice = await mesh.start()
    async with stock() as host:
        connection = await connect(host, alice)
        peer_id = connection.muxed_conn.peer_id
        first = await host.new_stream(peer_id, [TProtocol(PROTOCOL)])
        with pytest.raises(BaseLibp2pError):
            await (await host.new_stream(peer_id, [TProtocol(PROTOCOL)])).read(1)
        await first.write(b"hello")
        assert await first.read(5) == b"hello"
        assert len(alice.inbound) == 1


async def test_more_streams_than_the_bound_are_reset(mesh, stock, monkeypatch):
    monkeypatch.setattr(tamed, "MAX_STREAMS", 8)
    alice = await mesh.start()
    opened = 0

    async def keep_open(stream):
        nonlocal opened
        opened += 1
        await stream.write(b"x")
        await trio.sleep_forever()

    alice.transport._running().set_stream_handler(TProtocol("/test"), keep_open)
    async with stock() as host:
        connection = await connect(host, alice)
        with pytest.raises(BaseLibp2pError):
            await open_for_ever(host, connection.muxed_conn.peer_id)
        # The stock host may have had one or two of its own.
        assert 5 <= opened <= 8


async def open_for_ever(host, peer_id) -> None:
    while True:
        stream = await host.new_stream(peer_id, [TProtocol("/test")])
        await stream.read(1)


async def test_a_peer_that_ignores_its_window_is_cut_off(mesh, stock, until, monkeypatch):
    monkeypatch.setattr(tamed, "MAX_HELD", 2 * 1024 * 1024)
    alice = await mesh.start()
    alice.hold = True
    async with stock() as host:
        connection = await connect(host, alice)
        stream = await host.new_stream(connection.muxed_conn.peer_id, [TProtocol(PROTOCOL)])
        await alice.arrived()
        stream.muxed_stream.send_window = 1 << 40
        with pytest.raises(BaseLibp2pError):
            await stream.write(bytes(64 * 1024 * 1024))
        await until(lambda: alice.open_connections == 0)


async def test_a_frame_of_any_announced_size_is_not_waited_for(mesh, stock, until):
    alice = await mesh.start()
    async with stock() as host:
        connection = await connect(host, alice)
        await connection.muxed_conn.secured_conn.write(b"\x00\x00\x00\x00\x00\x00\x00\x01\xff\xff\xff\xff")
        await until(lambda: alice.open_connections == 0)


async def test_an_idle_connection_of_a_stranger_is_closed(mesh, stock, until, monkeypatch):
    monkeypatch.setattr(transport, "IDLE", 0.3)
    alice, bob = await mesh.start(), await mesh.start()
    channel = await bob.transport.dial(alice.transport.addresses)
    async with stock() as host:
        connection = await connect(host, alice)
        await until(lambda: connection.is_closed and alice.open_connections == 1)
    await channel.send_all(b"a channel keeps its connection")
    assert await channel.receive_some()


async def test_a_stranger_that_uses_its_connection_now_and_then_keeps_it(mesh, stock, monkeypatch):
    monkeypatch.setattr(transport, "IDLE", 0.3)
    alice = await mesh.start()
    async with stock() as host:
        connection = await connect(host, alice)
        for _ in range(6):
            await trio.sleep(0.1)
            stream = await host.new_stream(connection.muxed_conn.peer_id, [PING])
            await stream.write(bytes(32))
            assert await stream.read(32) == bytes(32)
            await stream.close()
        assert alice.open_connections == 1


async def test_a_stream_that_its_handler_leaves_open_is_forgotten(mesh, stock, until):
    alice = await mesh.start()

    async def leave_open(stream):
        await stream.write(b"x")

    alice.transport._running().set_stream_handler(TProtocol("/test"), leave_open)
    async with stock() as host:
        connection = await connect(host, alice)
        for _ in range(5):
            stream = await host.new_stream(connection.muxed_conn.peer_id, [TProtocol("/test")])
            assert await stream.read(1) == b"x"
            await stream.close()
        (ours,) = alice.transport._running().swarm.get_connections()
        await until(lambda: not ours.muxed_conn.streams)


async def test_messages_that_arrive_in_crumbs_are_read_whole(mesh, echo):
    """The stock reader gives up after a hundred pieces of one message."""
    alice, bob = await mesh.start(), await mesh.start()
    port = int(alice.transport.addresses[0].split("/")[4])

    async def relay(stream):
        async with stream, await trio.open_tcp_stream("127.0.0.1", port) as onward, trio.open_nursery() as nursery:
            for stop in (stream, onward):
                stop.setsockopt(6, 1, 1)
            nursery.start_soon(crumble, stream, onward)
            nursery.start_soon(crumble, onward, stream)

    async def crumble(source, sink):
        async for data in source:
            for start in range(0, len(data), 100):
                await sink.send_all(data[start : start + 100])
                await trio.sleep(0.0002)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(
            trio.serve_tcp,
            relay,
            0,
        )
        relayed = f"/ip4/127.0.0.1/tcp/{listeners[0].socket.getsockname()[1]}/p2p/{alice.identity.peer_id}"
        channel = await bob.transport.dial([relayed])
        await echo(channel, bytes(100_000))
        await channel.aclose()
        nursery.cancel_scope.cancel()


def test_it_is_quiet_unless_asked():
    program = """
import trio
from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.transport.libp2p import Libp2pTransport

async def main():
    async def handle(channel):
        await channel.receive_some()
    one, other = (Libp2pTransport(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"]) for _ in range(2))
    async with trio.open_nursery() as nursery:
        await nursery.start(one.run, handle)
        await nursery.start(other.run, handle)
        channel = await other.dial(one.addresses)
        channel.abort()
        wrong = one.addresses[0][:-52] + Identity.generate().peer_id
        try:
            await other.dial([wrong])
        except Unavailable:
            pass
        await trio.sleep(0.5)
        nursery.cancel_scope.cancel()

trio.run(main)
"""
    environment = {"PATH": ""}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=40, env=environment, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_it_never_touches_the_root_logger():
    assert tamed.swarm_connection.logging is logging.getLogger("libp2p.network.connection.swarm_connection")
