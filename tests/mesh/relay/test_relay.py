"""The relaying half over real sockets: who is joined, who is refused, and every bound."""

from __future__ import annotations

import contextlib

import pytest
import trio

from mesh.messages.relay import Fetch, Incoming, Join, Reserved
from mesh.relay import PROTOCOL, circuit


async def take(channel, size: int) -> bytes:
    received = b""
    with trio.fail_after(20):
        while len(received) < size:
            piece = b""
            with contextlib.suppress(trio.BrokenResourceError):
                piece = await channel.receive_some(size - len(received))
            if not piece:
                break
            received += piece
    return received


async def ended(channel) -> bool:
    with trio.fail_after(20):
        try:
            return await channel.receive_some(1) == b""
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return True


async def test_two_streams_become_one(station, until):
    await station.open()
    gateway, node = await station.guest(), await station.guest()
    one, other = await station.joined(gateway, node)
    assert node.link.sent == [Incoming(node.link.sent[0].circuit, gateway.peer_id)]
    for source, sink in ((one, other), (other, one)):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.send_all, bytes(range(256)) * 1000)
            assert await take(sink, 256_000) == bytes(range(256)) * 1000
    await one.send_all(b"last words")
    await one.aclose()
    assert await take(other, 100) == b"last words"
    other.abort()
    await until(lambda: not station.relay.circuits)


async def test_only_linked_peers_are_joined_and_only_with_those_who_reserved(station):
    await station.open()
    gateway, node, stranger = await station.guest(), await station.guest(), await station.guest(linked=False)
    assert await gateway.refused(Join(node.peer_id)) == "no_reservation"
    station.relay.reserve(node.link)
    assert await stranger.refused(Join(node.peer_id)) == "not_linked"
    assert await node.refused(Join(node.peer_id)) == "no_reservation"
    station.forbidden.add(gateway.peer_id)
    assert await gateway.refused(Join(node.peer_id)) == "peer_denied"
    assert node.link.sent == []


async def test_a_reservation_ends_with_its_link_and_its_process(station):
    await station.open()
    gateway, node = await station.guest(), await station.guest()
    station.relay.reserve(node.link)
    station.relay.gone(node.peer_id)
    assert station.relay.reservations == [node.peer_id], "another link of the same process is there"
    node.link.instance = "second"
    assert station.relay.reservations == []
    assert await gateway.refused(Join(node.peer_id)) == "no_reservation"
    station.relay.reserve(node.link)
    station.relay.release(node.peer_id)
    assert station.relay.reservations == []
    station.relay.reserve(node.link)
    del station.links[node.peer_id]
    station.relay.gone(node.peer_id)
    assert station.relay._reserved == {}


async def test_a_full_relay_takes_no_more_reservations_but_keeps_those_it_has(station):
    await station.open(reservations=1)
    first, second = await station.guest(), await station.guest()
    assert station.relay.reserve(first.link) == Reserved()
    assert station.relay.reserve(second.link) == Reserved("relay_full", "it is the relay of 1 peers already")
    assert station.relay.reserve(first.link) == Reserved()


async def test_who_does_not_relay_says_so(station):
    await station.open()
    gateway, node = await station.guest(), await station.guest()
    station.relay.reserve(node.link)
    station.willing = False
    assert station.relay.reserve(node.link).code == "relay_off"
    assert await gateway.refused(Join(node.peer_id)) == "relay_off"
    station.willing = True
    node.link.via = "a relay"
    assert station.relay.reserve(node.link).code == "relay_chain"


async def test_circuits_are_counted_for_each_peer_and_in_all_and_while_they_are_set_up(station, until):
    await station.open(circuits=2, circuits_per_peer=1, setup=20)
    gateway, node, other, third = [await station.guest() for _ in range(4)]
    for guest in (node, other, third):
        station.relay.reserve(guest.link)
    one, _ = await station.joined(gateway, node)
    assert await gateway.refused(Join(other.peer_id)) == "relay_full"
    assert await other.refused(Join(node.peer_id)) == "relay_full"
    waiting = await other.transport.open(other.relay, PROTOCOL)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other.ask, Join(third.peer_id))
        await third.incoming()
        late = await station.guest()
        assert await late.refused(Join(third.peer_id)) == "relay_full"
        nursery.cancel_scope.cancel()
    waiting.abort()
    one.abort()
    await until(lambda: not station.relay.circuits)


async def test_who_does_not_come_for_its_half_is_not_waited_for_long(station, until):
    await station.open(setup=0.2)
    gateway, node = await station.guest(), await station.guest()
    station.relay.reserve(node.link)
    assert await gateway.refused(Join(node.peer_id)) == "relay_failed"
    assert await node.refused(Fetch((await node.incoming()).circuit)) == "no_circuit"
    await until(lambda: not station.relay._setups)


async def test_nobody_else_gets_the_other_half(station):
    await station.open(setup=2)
    gateway, node, thief = [await station.guest() for _ in range(3)]
    station.relay.reserve(node.link)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gateway.ask, Join(node.peer_id))
        number = (await node.incoming()).circuit
        assert await thief.refused(Fetch(number)) == "no_circuit"
        assert await node.refused(Fetch(bytes(16))) == "no_circuit"
        channel, answer = await node.ask(Fetch(number))
        assert answer.code == ""
        assert await node.refused(Fetch(number)) == "no_circuit"
    channel.abort()


async def test_nonsense_is_refused(station):
    await station.open()
    guest = await station.guest()
    channel = await guest.transport.open(guest.relay, PROTOCOL)
    await channel.send_all(b"\x00\x10\x00\x00" + b"x" * 100)
    assert b"broke the protocol" in await take(channel, 300)
    channel.abort()
    assert await guest.refused(Incoming(b"", "")) == "relay_failed"


async def test_a_pair_that_used_up_its_bytes_is_cut_and_told_when_it_may_come_again(station, until):
    await station.open(total=100_000)
    gateway, node = await station.guest(), await station.guest()
    one, other = await station.joined(gateway, node)
    with contextlib.suppress(trio.BrokenResourceError):
        await one.send_all(bytes(150_000))
    await until(lambda: not station.relay.circuits)
    assert len(await take(other, 150_000)) <= 100_000
    one.abort()
    channel, answer = await gateway.ask(Join(node.peer_id))
    assert answer.code == "relay_used_up"
    assert "; again in 3" in answer.message
    channel.abort()
    third = await station.guest()
    assert all(await station.joined(third, node)), "others may still be joined with it"


async def test_a_circuit_on_which_nothing_moves_ends(station, until):
    await station.open(idle=0.3)
    gateway, node = await station.guest(), await station.guest()
    one, other = await station.joined(gateway, node)
    for _ in range(5):
        await trio.sleep(0.1)
        await one.send_all(b"x")
    assert station.relay.circuits
    await take(other, 5)
    assert await ended(other)
    await until(lambda: not station.relay.circuits)


async def test_a_circuit_keeps_its_rate(station, monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(circuit.trio, "sleep_until", lambda due: noted(due))

    async def noted(due: float) -> None:
        slept.append(due - trio.current_time())
        await trio.lowlevel.checkpoint()

    await station.open(rate=100_000)
    one, other = await station.joined(await station.guest(), await station.guest())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(one.send_all, bytes(500_000))
        await take(other, 500_000)
    # Bytes that are on their way without a pause would have taken five seconds.
    assert max(slept) == pytest.approx(5.0, abs=2.0)


async def test_a_slow_end_holds_the_other_one_up_and_nothing_piles_up(station):
    await station.open(rate=1_000_000_000)
    one, other = await station.joined(await station.guest(), await station.guest())
    sent = 0
    with trio.move_on_after(1.0):
        while True:
            await one.send_all(bytes(64 * 1024))
            sent += 64 * 1024
    (carried,) = station.relay.circuits
    assert sent < 12 * 1024 * 1024, "windows and read-ahead of two streams"
    assert carried.passed <= sent + 64 * 1024
    assert len(await take(other, 1024 * 1024)) == 1024 * 1024
