"""Connections over streams that somebody in the middle joined: here three transports over real sockets."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import pytest
import trio

from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.transport.libp2p import circuit, dialling
from mesh.transport.libp2p.addresses import Address

PROTOCOL = "/test/join/1"
CALLEE = "/test/callee/1"


class Middle:
    """Joins whoever opens `PROTOCOL` with whoever opened `CALLEE`; keeps what it saw."""

    def __init__(self) -> None:
        self.waiting: list = []
        self.seen = bytearray()

    async def called(self, channel) -> None:
        self.waiting.append(channel)
        await trio.sleep_forever()

    async def calling(self, channel) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._copy, channel, self.waiting[0], nursery.cancel_scope)
            nursery.start_soon(self._copy, self.waiting[0], channel, nursery.cancel_scope)
        await self.waiting[0].aclose()

    async def _copy(self, source, sink, over) -> None:
        with suppress(trio.BrokenResourceError):
            while data := await source.receive_some():
                self.seen += data
                await sink.send_all(data)
        over.cancel()


@pytest.fixture
async def circle(mesh, until):
    """Caller, callee and the address that leads from the one to the other."""
    middle = Middle()

    def prepare(transport) -> None:
        transport.answer(PROTOCOL, middle.calling)
        transport.answer(CALLEE, middle.called)

    relay = await mesh.start(prepare=prepare)
    caller, callee = await mesh.start(), await mesh.start()

    async def wait() -> None:
        await callee.transport.welcome(await callee.transport.open(relay.transport.addresses, CALLEE))

    async def join(hop: str, _peer_id: str):
        return await caller.transport.open([hop], PROTOCOL)

    caller.transport.join_by(join)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await until(lambda: middle.waiting)
        yield caller, callee, relay, f"{relay.transport.addresses[0]}/p2p-circuit/p2p/{callee.identity.peer_id}", middle
        nursery.cancel_scope.cancel()


async def test_a_link_over_a_joined_stream_is_proven_and_encrypted_end_to_end(circle, echo):
    caller, callee, relay, address, middle = circle
    channel = await caller.transport.dial([address])
    await echo(channel, b"nobody in the middle reads this " * 4000)
    other = await callee.arrived()
    assert (channel.peer_id, other.peer_id) == (callee.identity.peer_id, caller.identity.peer_id)
    assert (channel.carrier, other.carrier) == ("relay", "relay")
    assert channel.via == other.via == relay.identity.peer_id
    assert channel.remote_address == address.rpartition("/p2p/")[0]
    assert len(middle.seen) > 2 * 32 * 4000
    assert b"in the middle" not in middle.seen


async def test_somebody_else_at_the_other_end_is_found_out(circle):
    caller, _, _, address, _ = circle
    stranger = Identity.generate().peer_id
    with pytest.raises(Unavailable, match="another peer answers there"):
        await caller.transport.dial([f"{address.rpartition('/p2p/')[0]}/p2p/{stranger}"])


async def test_last_words_arrive_when_a_joined_stream_is_closed_cleanly(circle):
    caller, callee, _, address, _ = circle
    callee.hold = True
    channel = await caller.transport.dial([address])
    other = await callee.arrived()
    await channel.send_all(bytes(200_000) + b"the end")
    await channel.aclose()
    received = b"".join([bytes(piece) async for piece in other])
    assert received == bytes(200_000) + b"the end"


@pytest.mark.parametrize("end", ["caller", "callee"])
async def test_an_abort_at_one_end_is_noticed_at_the_other_and_leaves_no_connection(circle, end, until):
    caller, callee, _, address, _ = circle
    callee.hold = True
    channel = await caller.transport.dial([address])
    other = await callee.arrived()
    aborted, noticing = (channel, other) if end == "caller" else (other, channel)
    aborted.abort()
    with trio.fail_after(10):
        with suppress(trio.BrokenResourceError):
            assert await noticing.receive_some() == b""
    noticing.abort()
    await until(lambda: caller.open_connections == callee.open_connections == 0)


async def test_a_middle_that_takes_nothing_is_given_up(circle, echo, monkeypatch, until):
    monkeypatch.setattr(circuit, "STALL", 0.3)
    caller, _, _, address, _ = circle
    channel = await caller.transport.dial([address])
    await echo(channel)
    outer = channel._carrier._stream
    outer.send_all = partial(trio.sleep, 60)
    await channel.send_all(b"x" * 1000)
    await until(lambda: channel._carrier.closed)
    with pytest.raises((trio.BrokenResourceError, trio.ClosedResourceError)):
        await channel.send_all(b"x")


async def test_only_links_go_over_relays_and_only_once_somebody_joins(circle, mesh):
    caller, _, _, address, _ = circle
    with pytest.raises(Unavailable, match="only links do"):
        await caller.transport.open([address], PROTOCOL)
    with pytest.raises(Unavailable, match="only links do"):
        await (await mesh.start()).transport.dial([address])


async def test_a_relay_comes_after_every_other_address(circle):
    caller, callee, _, address, _ = circle
    far = f"/ip4/8.8.8.8/tcp/1/p2p/{callee.identity.peer_id}"
    assert [one.relay is not None for one in dialling.Dial([address, far]).addresses] == [False, True]
    channel = await caller.transport.dial([address, *callee.transport.addresses])
    assert channel.carrier == "libp2p"
    channel.abort()


async def test_the_relays_own_address_is_a_part_of_the_circuits(circle):
    _, callee, relay, address, _ = circle
    parsed = Address.parse(address)
    assert str(parsed) == address
    assert str(parsed.hop) == relay.transport.addresses[0]
    assert parsed.hop.peer_id == parsed.relay == relay.identity.peer_id
    assert parsed.peer_id == callee.identity.peer_id


async def test_a_probe_tells_who_answers_at_an_address(mesh, until):
    alice, bob = await mesh.start(), await mesh.start("/ip4/127.0.0.1/tcp/0/ws")
    await alice.transport.probe(bob.transport.addresses[0])
    await until(lambda: alice.open_connections == bob.open_connections == 0)
    assert bob.inbound == [], "nobody is linked by it"
    with pytest.raises(Unavailable, match="refused"):
        await alice.transport.probe(f"/ip4/127.0.0.1/tcp/1/p2p/{bob.identity.peer_id}")
    with pytest.raises(Unavailable, match="another peer answers"):
        await alice.transport.probe(bob.transport.addresses[0].rpartition("/")[0] + f"/{alice.identity.peer_id}")
    with pytest.raises(Unavailable):
        await alice.transport.probe("nonsense")
