"""What a bad peer may do, and that it harms no other."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from mesh.framing import frame
from mesh.identity import Identity
from mesh.link.codec import encode, join
from mesh.messages.link import Hello, Records
from mesh.messages.record import NodeRecord, SealedRecord
from mesh.record import RECORD_TTL, open_record, seal
from mesh.transport.memory import MemoryTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from mesh.peer import Peer
from tests.mesh.town import Heard, Town, hearing, served, town, until


def hello_of(identity: Identity) -> Hello:
    record = NodeRecord(
        peer_id=identity.peer_id, sequence=1, issued_at=0, ttl=RECORD_TTL, role="gateway", name="bad", mesh="test", version="0",
        addresses=[],
    )  # fmt: skip
    return Hello(mesh="test", instance="bad", record=seal(identity, record))


def strangers(count: int) -> Iterator[SealedRecord]:
    for number in range(count):
        identity = Identity.generate()
        address = f"/memory/{number + 1000}/p2p/{identity.peer_id}"
        yield seal(
            identity,
            NodeRecord(
                peer_id=identity.peer_id, sequence=1, issued_at=0, ttl=RECORD_TTL, role="node", name="x", mesh="test",
                version="0", addresses=[address],
            ),
        )  # fmt: skip


@asynccontextmanager
async def intruder(here: Town, peer: Peer) -> AsyncIterator[Any]:
    """A channel to `peer` on which hello was said."""
    identity = Identity.generate()
    medium = MemoryTransport(identity, here.network)

    async def ignore(channel):
        channel.abort()

    async with trio.open_nursery() as nursery:
        await nursery.start(medium.run, ignore)
        channel = await medium.dial(peer.addresses)
        await channel.send_all(frame(join([encode(hello_of(identity))])))
        await until(lambda: identity.peer_id in peer.links)
        yield channel
        nursery.cancel_scope.cancel()


async def test_bad_records_do_no_harm(autojump_clock):
    async with town() as here:
        gateway = await here.add("gateway")
        victim = Identity.generate()
        good = next(strangers(1))
        lie = msgspec.structs.replace(open_record(good), peer_id=victim.peer_id)
        forged = SealedRecord(msgspec.msgpack.encode(lie), good.signature)
        async with intruder(here, gateway) as channel:
            records = [
                forged,
                SealedRecord(b"\xc1", bytes(64)),
                SealedRecord(b"", b""),
                SealedRecord(b"\x91" * 4000, bytes(64)),
                good,
            ]
            await channel.send_all(frame(join([encode(Records(records, [-5, 2**40]))])))
            await until(lambda: open_record(good).peer_id in gateway.registry.peers, limit=2)
            assert victim.peer_id not in gateway.registry.peers


async def test_a_flood_of_strangers_is_bounded(autojump_clock, monkeypatch):
    monkeypatch.setattr("mesh.registry.MAX_PEERS", 1000)
    async with town() as here:
        gateway = await here.add("gateway")
        async with intruder(here, gateway) as channel:
            for _ in range(2):
                records = list(strangers(700))
                for start in range(0, 700, 350):
                    await channel.send_all(frame(join([encode(Records(records[start : start + 350]))])))
            await trio.sleep(2)
            assert len(gateway.registry.peers) <= 1001
            await trio.sleep(2 * RECORD_TTL)
        await trio.sleep(RECORD_TTL)
        assert gateway.registry.peers == {}
        assert gateway._dialler._targets == {}


async def test_garbage_on_a_link_ends_that_link_alone(autojump_clock, caplog):
    async with town() as here:
        gateway = await here.add("gateway")
        node = await here.add("node", discovery=None)
        async with intruder(here, gateway) as channel, intruder(here, node) as other:
            await channel.send_all(b"\xff" * 100)
            await other.send_all(frame(b"\xc1"))
            await trio.sleep(1)
            assert gateway.links == {}
            assert node.links == {}
        bootstrap = await here.add("gateway", discovery=hearing(Heard(node.peer_id, node.addresses)))
        await until(lambda: served(bootstrap))


async def test_an_error_of_ours_in_a_link_is_logged_and_ends_it_alone(autojump_clock, caplog, monkeypatch):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        monkeypatch.setattr(bootstrap._exchange, "greet", lambda _link: 1 / 0)
        await here.add("node", bootstrap)
        await trio.sleep(1)
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        with caplog.at_level(logging.ERROR):
            newcomer = await here.add("node", bootstrap)
        assert bootstrap.peer_id in newcomer.links
