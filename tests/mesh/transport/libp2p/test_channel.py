from __future__ import annotations

import random
import signal
import subprocess
import sys
from contextlib import suppress

import psutil
import pytest
import trio

from mesh.transport.libp2p import channel as channel_module
from mesh.transport.libp2p import tamed

SILENT_PEER = """
import sys, trio
from mesh.identity import Identity
from mesh.transport.libp2p import Libp2pTransport

async def main():
    async def handle(channel):
        await trio.sleep_forever()
    transport = Libp2pTransport(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"])
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, handle)
        print(transport.addresses[0], flush=True)

trio.run(main)
"""


async def test_cancelled_reads_lose_nothing_and_cancelled_writes_end_nothing(mesh, echo):
    alice, bob = await mesh.start(), await mesh.start()
    alice.hold = True
    channel = await bob.transport.dial(alice.transport.addresses)
    inbound = await alice.arrived()
    chance = random.Random(3)
    count = 3000
    received = bytearray()

    async def write():
        for number in range(count):
            await inbound.send_all(number.to_bytes(4, "big"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        while len(received) < 4 * count:
            with trio.move_on_after(chance.choice([0, 0, 0.0001, 0.001])):
                received += await channel.receive_some(chance.randint(1, 50))
    assert received == b"".join(number.to_bytes(4, "big") for number in range(count))

    for _ in range(50):
        with trio.move_on_after(chance.choice([0, 0.0001])):
            await channel.send_all(bytes(100))
    await inbound.send_all(b"both ways")
    assert await channel.receive_some() == b"both ways"
    await channel.send_all(b"end")
    sent = b""
    with trio.fail_after(20):
        while not sent.endswith(b"end"):
            sent += await inbound.receive_some()
    assert sent.removesuffix(b"end") == bytes(len(sent) - 3)


async def test_a_reader_that_pauses_for_longer_than_yamux_waits_loses_nothing(mesh):
    alice, bob = await mesh.start(), await mesh.start()
    alice.hold = True
    channel = await bob.transport.dial(alice.transport.addresses)
    inbound = await alice.arrived()
    size = 12 * 1024 * 1024
    stalled = trio.Event()

    async def write():
        for start in range(0, size, 1024 * 1024):
            with trio.move_on_after(1) as patience:
                await trio.lowlevel.checkpoint()
            assert not patience.cancelled_caught
            await channel.send_all(bytes([start >> 20]) * 1024 * 1024)
        stalled.set()

    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write)
        with trio.move_on_after(7) as pause:
            await stalled.wait()
        assert pause.cancelled_caught, "the writer never had to wait"
        held = sum(len(buffer) for buffer in inbound._stream.muxed_conn.stream_buffers.values())
        assert 0 < held < tamed.MAX_HELD // 2
        assert len(inbound._received) < channel_module.READ_AHEAD + 64 * 1024
        while len(received) < size:
            received += await inbound.receive_some()
    assert all(received[start] == start >> 20 for start in range(0, size, 1000))


async def test_a_waiting_write_can_be_cancelled_without_harm(mesh, echo):
    alice, bob = await mesh.start(), await mesh.start()
    alice.hold = True
    channel = await bob.transport.dial(alice.transport.addresses)
    inbound = await alice.arrived()
    with trio.move_on_after(1) as patience:
        await channel.send_all(bytes(64 * 1024 * 1024))
    assert patience.cancelled_caught
    await inbound.send_all(b"the other direction")
    assert await channel.receive_some() == b"the other direction"


async def test_an_abort_wakes_whoever_waits(mesh, until):
    alice, bob = await mesh.start(), await mesh.start()
    alice.hold = True
    channel = await bob.transport.dial(alice.transport.addresses)
    await alice.arrived()
    failures = []

    async def expect_failure(call, *args):
        try:
            await call(*args)
        except trio.ClosedResourceError as error:
            failures.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_failure, channel.receive_some)
        nursery.start_soon(expect_failure, channel.send_all, bytes(64 * 1024 * 1024))
        await trio.sleep(0.5)
        channel.abort()
        channel.abort()
    assert len(failures) == 2
    await until(lambda: bob.open_connections == 0)


async def test_an_abort_is_felt_by_the_other_side(mesh):
    alice, bob = await mesh.start(), await mesh.start()
    alice.hold = True
    channel = await bob.transport.dial(alice.transport.addresses)
    inbound = await alice.arrived()
    channel.abort()
    with trio.fail_after(20), pytest.raises(trio.BrokenResourceError):
        await inbound.receive_some()
    with pytest.raises(trio.BrokenResourceError):
        await inbound.send_all(b"x")
    with pytest.raises(trio.BrokenResourceError):
        await inbound.wait_send_all_might_not_block()


@pytest.mark.system
async def test_an_abort_closes_the_socket_to_a_peer_that_hangs(mesh, until):
    bob = await mesh.start()
    process = await trio.lowlevel.open_process([sys.executable, "-c", SILENT_PEER], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        address = ""
        with trio.fail_after(40):
            while not address.endswith("\n"):
                address += (await process.stdout.receive_some()).decode()
        channel = await bob.transport.dial([address.strip()])
        port = int(address.split("/")[4])
        process.send_signal(signal.SIGSTOP)
        async with trio.open_nursery() as nursery:

            async def fill():
                with pytest.raises(trio.ClosedResourceError):
                    await channel.send_all(bytes(256 * 1024 * 1024))

            nursery.start_soon(fill)
            await until(lambda: len(channel._carrier._backlog) > 0)
            channel.abort()
        assert [entry for entry in psutil.Process().net_connections("tcp") if entry.raddr and entry.raddr.port == port] == []
        await until(lambda: bob.open_connections == 0)
    finally:
        process.kill()
        await process.wait()


@pytest.mark.system
async def test_a_killed_peer_ends_the_reads(mesh, until):
    bob = await mesh.start()
    process = await trio.lowlevel.open_process([sys.executable, "-c", SILENT_PEER], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        address = ""
        with trio.fail_after(40):
            while not address.endswith("\n"):
                address += (await process.stdout.receive_some()).decode()
        channel = await bob.transport.dial([address.strip()])
        process.kill()
        with trio.fail_after(20):
            with suppress(trio.BrokenResourceError):
                assert await channel.receive_some() == b""
        with pytest.raises(trio.BrokenResourceError):
            await channel.send_all(b"x")
    finally:
        process.kill()
        await process.wait()


async def test_closing_does_not_wait_for_ever_for_the_other_side(mesh, until, monkeypatch):
    monkeypatch.setattr(channel_module, "CLOSE_GRACE", 0.2)
    alice, bob = await mesh.start(), await mesh.start()
    alice.hold = True
    channel = await bob.transport.dial(alice.transport.addresses)
    inbound = await alice.arrived()
    await inbound.send_all(bytes(500_000))
    with trio.fail_after(20):
        await channel.aclose()
    await until(lambda: bob.open_connections == 0)


async def test_a_cancelled_close_still_closes(mesh, until):
    alice, bob = await mesh.start(), await mesh.start()
    alice.hold = True
    channel = await bob.transport.dial(alice.transport.addresses)
    await alice.arrived()
    with trio.move_on_after(0):
        await channel.aclose()
    await until(lambda: bob.open_connections == 0)


async def test_the_socket_sends_small_messages_at_once(mesh):
    import socket

    alice, bob = await mesh.start(), await mesh.start()
    channel = await bob.transport.dial(alice.transport.addresses)
    for side in (channel, await alice.arrived()):
        assert side._carrier._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


async def test_reads_give_what_is_there_up_to_the_limit(mesh):
    alice, bob = await mesh.start(), await mesh.start()
    channel = await bob.transport.dial(alice.transport.addresses)
    await channel.send_all(b"abcdef")
    assert await channel.receive_some(1) == b"a"
    rest = b""
    while len(rest) < 5:
        rest += await channel.receive_some(2)
    assert rest == b"bcdef"
    await channel.send_all(b"")


async def test_a_peer_whose_key_is_of_another_kind_gets_no_channel(mesh, stock):
    from libp2p.crypto.secp256k1 import create_new_key_pair
    from libp2p.custom_types import TProtocol
    from libp2p.exceptions import BaseLibp2pError
    from libp2p.peer.id import ID
    from multiaddr import Multiaddr

    from mesh.transport.libp2p import PROTOCOL

    alice = await mesh.start()
    async with stock(key_pair=create_new_key_pair()) as host:
        address = Multiaddr(alice.transport.addresses[0].rpartition("/p2p/")[0])
        await host.get_network().dial_addr(address, ID.from_base58(alice.identity.peer_id))
        with suppress(BaseLibp2pError):
            stream = await host.new_stream(ID.from_base58(alice.identity.peer_id), [TProtocol(PROTOCOL)])
            await stream.read(1)
    assert alice.inbound == []
