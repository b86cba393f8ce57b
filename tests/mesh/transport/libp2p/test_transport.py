from __future__ import annotations

import psutil
import pytest
import trio
import trio.lowlevel

from mesh.errors import Misconfigured
from mesh.identity import Identity
from mesh.transport.libp2p import Libp2pTransport
from tests.mesh.transport.libp2p.draining import drained

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
