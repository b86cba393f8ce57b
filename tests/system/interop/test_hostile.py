"""What strangers do to a running node and a running gateway costs those strangers their connection, and nobody else anything."""

from __future__ import annotations

import os
import socket
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import msgspec
import psutil
import pytest
import trio

from mesh.errors import Unavailable
from mesh.framing import FrameReader, frame
from mesh.identity import Identity
from mesh.link.codec import decode, encode, join
from mesh.messages.link import Hello, Records, Refused
from mesh.messages.record import NodeRecord, SealedRecord
from mesh.record import RECORD_TTL, open_record, seal
from mesh.transport.libp2p import Libp2pTransport
from mesh.transport.libp2p.admission import MAX_PER_PEER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

HALF_OPEN = 1_000
HUGE = 100 * 1024 * 1024
SPARE = 48 * 1024 * 1024
"""Bytes that a program may grow by while it is told 100 MiB; a connection holds 16 MiB at most."""


def record_of(identity: Identity, mesh: str, **changes: Any) -> NodeRecord:
    fields = {"sequence": 1, "name": "stranger", "addresses": [], **changes}
    return NodeRecord(peer_id=identity.peer_id, issued_at=0, ttl=RECORD_TTL, role="node", mesh=mesh, version="0", **fields)


def forged(identity: Identity, mesh: str) -> SealedRecord:
    good = seal(identity, record_of(identity, mesh))
    return SealedRecord(good.payload, bytes(len(good.signature)))


class Stranger:
    """Speaks to programs of ours as it likes."""

    def __init__(self, transport: Libp2pTransport, identity: Identity, mesh: str) -> None:
        self.transport = transport
        self.identity = identity
        self.mesh = mesh

    async def say(self, channel: Any, *messages: Any) -> None:
        await channel.send_all(frame(join([encode(message) for message in messages])))

    async def link(self, program: Any, record: SealedRecord | None = None) -> Any:
        """A channel on which hello was said."""
        channel = await self.transport.dial([program.address])
        record = record or seal(self.identity, record_of(self.identity, self.mesh))
        await self.say(channel, Hello(mesh=self.mesh, instance=os.urandom(8).hex(), record=record))
        return channel


async def heard(channel: Any) -> list[Any]:
    """All that is said until the end."""
    reader, messages = FrameReader(), []
    try:
        async for data in channel:
            messages += [message for body in reader.feed(data) for message in decode(body)]
    except trio.BrokenResourceError:
        pass
    return messages


async def first(channel: Any, kind: type) -> Any:
    reader = FrameReader()
    async for data in channel:
        for body in reader.feed(data):
            for message in decode(body):
                if isinstance(message, kind):
                    return message
    raise AssertionError(f"the channel ended without a {kind.__name__}")


@asynccontextmanager
async def stranger(mesh: str) -> AsyncIterator[Stranger]:
    identity = Identity.generate()
    transport = Libp2pTransport(identity, ["/ip4/127.0.0.1/tcp/0"])

    async def ignore(channel: Any) -> None:
        await channel.aclose()

    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run, ignore)
        yield Stranger(transport, identity, mesh)
        nursery.cancel_scope.cancel()


def port_of(address: str) -> int:
    return int(address.split("/")[4])


async def ended(stream: trio.SocketStream) -> None:
    try:
        while await stream.receive_some():
            pass
    except trio.BrokenResourceError:
        pass
    await stream.aclose()


async def half_open(bad: Stranger, node: Any) -> None:
    """A thousand connections that say nothing: whoever comes then gets in, though they stay."""
    held: list[socket.socket] = []
    try:
        for _ in range(HALF_OPEN):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port_of(node.address)))
            held.append(one)
        with trio.fail_after(30):
            channel = await bad.link(node)
            assert (await first(channel, Hello)).mesh == bad.mesh
        assert len(psutil.Process(node.process.pid).net_connections("tcp")) < HALF_OPEN
        channel.abort()
    finally:
        for one in held:
            one.close()


async def garbage_for_a_handshake(bad: Stranger, node: Any) -> None:
    for address in node.ready["addresses"]:
        raw = await trio.open_tcp_stream("127.0.0.1", port_of(address))
        with suppress(trio.BrokenResourceError):
            await raw.send_all(os.urandom(200_000))
            await raw.send_eof()
        await ended(raw)


async def garbage_after_the_handshake(bad: Stranger, node: Any) -> None:
    # In place of the encryption's messages, of the multiplexer's frames, and of the link's, before hello and after it.
    channels = [await bad.transport.dial([node.address]) for _ in range(3)]
    channels[0]._carrier.send(b"\xff" * 200_000)
    await channels[1]._stream.muxed_conn.secured_conn.write(b"\x00\x00" + b"\xff" * 10_000)
    channels.append(await bad.link(node))
    await first(channels[-1], Hello)
    for channel in channels[2:]:
        await channel.send_all(frame(b"\xc1" * 1000))
    for channel in channels:
        await heard(channel)


async def a_huge_frame(bad: Stranger, node: Any) -> None:
    process = psutil.Process(node.process.pid)
    before = process.memory_info().rss
    channel = await bad.link(node)
    await first(channel, Hello)
    with pytest.raises(trio.BrokenResourceError):  # noqa: PT012 - whichever piece comes too late
        await channel.send_all(HUGE.to_bytes(4, "big"))
        for _ in range(HUGE // 2**20):
            await channel.send_all(bytes(2**20))
    assert process.memory_info().rss < before + SPARE


async def streams_in_a_loop(bad: Stranger, node: Any) -> None:
    channel = await bad.transport.dial([node.address])
    for _ in range(2_000):
        await (await channel._stream.muxed_conn.open_stream()).reset()
    await bad.link(node)


async def connections_in_a_loop(bad: Stranger, node: Any) -> None:
    """They prove themselves and do nothing more."""
    channels = []
    with pytest.raises(Unavailable):  # noqa: PT012 - whichever is too many
        while True:
            channels.append(await bad.transport.dial([node.address]))
    assert len(channels) <= MAX_PER_PEER
    for channel in channels:
        channel.abort()


async def bad_records(bad: Stranger, gateway: Any, http: Any, until: Any) -> None:
    """Unsigned, tampered and replayed ones, in a hello and among good ones."""
    victim, other, invented = (Identity.generate() for _ in range(3))
    channel = await bad.link(gateway, forged(bad.identity, bad.mesh))
    (refusal,) = [message for message in await heard(channel) if isinstance(message, Refused)]
    assert "signature" in refusal.message

    async def names() -> dict[str, str]:
        peers = (await http.get(f"{gateway.url}/v1/mesh/peers")).json()["peers"]
        return {peer["peer_id"]: peer["name"] for peer in peers}

    now = int(time.time() * 1000)
    newest, older = (
        seal(victim, record_of(victim, bad.mesh, sequence=now + step, name=name)) for step, name in ((1, "new"), (0, "old"))
    )
    marker = seal(other, record_of(other, bad.mesh, name="marker"))
    renamed = msgspec.structs.replace(open_record(newest), name="renamed", sequence=now + 2)
    tampered = SealedRecord(msgspec.msgpack.encode(renamed), newest.signature)
    channel = await bad.link(gateway)
    await first(channel, Hello)
    await bad.say(channel, Records([newest]), Records([older, tampered, forged(invented, bad.mesh)]))
    await bad.say(channel, Records([marker]))

    async def believed() -> dict[str, str] | None:
        known = await names()
        return known if known.get(other.peer_id) == "marker" else None

    known = await until(believed)
    assert known[victim.peer_id] == "new"
    assert invented.peer_id not in known
    channel.abort()


async def test_a_stream_goes_on_whatever_strangers_do_to_its_node(
    fleet: Any, slow_node: Any, bystander: Any, http: Any, until: Any
) -> None:
    attacks = [
        half_open,
        garbage_for_a_handshake,
        garbage_after_the_handshake,
        a_huge_frame,
        streams_in_a_loop,
        connections_in_a_loop,
    ]
    async with bystander(slow_node) as watch:
        for attack in attacks:
            async with stranger(fleet.mesh) as bad:
                with trio.fail_after(60):
                    await attack(bad, slow_node)
            await watch.goes_on()
        async with stranger(fleet.mesh) as bad:
            with trio.fail_after(60):
                await bad_records(bad, watch.gateway, http, until)
