"""Heartbeats, and how death and silence are noticed."""

from __future__ import annotations

import math

import msgspec
import pytest
import trio
import trio.lowlevel

from mesh.errors import Unavailable
from mesh.framing import frame
from mesh.messages.link import (
    Heartbeat,
    Leave,
    ModelLoad,
    Unknown,
)


async def test_rtt_is_measured_without_the_time_the_other_side_held_it(autojump_clock, kit):
    kit.network.latency = 0.03
    async with kit.links() as pair:
        await trio.sleep(5)
        assert pair.near.rtt == pytest.approx(0.06, abs=0.005)
        assert pair.far.rtt == pytest.approx(0.06, abs=0.005)


async def test_load_travels_with_heartbeats(autojump_clock, kit, side):
    load = {"m": ModelLoad("loading")}
    async with kit.links(far=side(kit.far, load=lambda: load)) as pair:
        await trio.sleep(0.1)
        assert pair.near.load == {"m": ModelLoad("loading")}
        load["m"] = ModelLoad("ready", running=3)
        pair.far.beat()
        await trio.sleep(0.1)
        assert pair.near.load["m"].running == 3


async def test_three_seconds_of_silence_are_death(autojump_clock, kit, side, words, ask):
    service = words()
    service.gate = trio.Event()
    async with kit.links(far=side(kit.far, service=service)) as pair:
        await trio.sleep(10)
        assert not pair.near.closed.is_set()
        kit.network.hang(kit.far.peer_id)
        started = trio.current_time()
        with pytest.raises(Unavailable) as caught:
            await pair.near.infer(ask(), lambda _: None)
        assert caught.value.code == "link_lost"
        assert "silent" in caught.value.message
        assert trio.current_time() - started <= 3
        with pytest.raises(Unavailable):
            await pair.near.infer(ask(), lambda _: None)


async def test_any_byte_is_a_sign_of_life(autojump_clock, kit):
    async with kit.raw() as (link, raw, _):
        for byte in frame(msgspec.msgpack.encode([Leave("slowly")])):
            await raw.channel.send_all(bytes([byte]))
            await trio.sleep(2)
        assert not link.closed.is_set()
        assert link.leaving


async def test_death_of_the_other_side_ends_requests_in_both_directions(autojump_clock, kit, side, words, ask):
    service = words()
    service.gate = trio.Event()
    async with kit.links(near=side(kit.near, service=service)) as pair:

        async def far():
            with pytest.raises(Unavailable):
                await pair.far.infer(ask(), lambda _: None)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(far)
            await trio.sleep(0.1)
            assert service.running == 1
            kit.network.kill(kit.far.peer_id)
        await pair.near.closed.wait()
        assert service.running == 0
        assert service.cancelled == 1


async def test_an_impossible_echo_is_not_a_round_trip(autojump_clock, kit):
    async with kit.raw() as (link, raw, _):
        for echo in (math.nan, math.inf, -math.inf, 1e300, trio.current_time() + 100):
            await raw.say(Heartbeat(math.nan, echo))
        await trio.sleep(0.1)
        assert link.rtt is None
        assert not link.closed.is_set()


async def test_a_peer_that_does_not_read_is_cut_off(autojump_clock, kit):
    async with kit.raw() as (link, _raw, outcomes):
        for _ in range(20):
            if link.closed.is_set():
                break
            link.send(Unknown("x" * 1_000_000))
            await trio.lowlevel.checkpoint()
        await link.closed.wait()
        await trio.lowlevel.checkpoint()
        assert link.reason == "the other side does not read"
        assert outcomes == {"near": None}


async def test_a_peer_that_beats_but_does_not_read_a_little_is_cut_off_too(autojump_clock, kit):
    async with kit.raw() as (link, raw, _):
        link.send(Unknown("x" * 200_000))
        with trio.move_on_after(60):
            while not link.closed.is_set():
                try:
                    await raw.say(Heartbeat(0.0))
                except trio.BrokenResourceError:
                    break
                await trio.sleep(1)
        with trio.fail_after(1):
            await link.closed.wait()
        assert link.reason == "the other side does not read"
