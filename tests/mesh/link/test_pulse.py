"""Liveness and round trips, on a clock that the test moves."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from mesh.link.pulse import INTERVAL, SILENCE, Pulse
from mesh.messages.link import Heartbeat


async def watch(pulse, ended):
    await pulse.until_silent()
    ended.append(trio.current_time())


async def test_silence_is_counted_from_the_last_byte(autojump_clock):
    pulse, ended = Pulse(), []
    started = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, pulse, ended)
        for _ in range(5):
            await trio.sleep(2.9)
            pulse.heard()
    assert ended[0] - started == pytest.approx(5 * 2.9 + SILENCE)


async def test_a_loop_that_was_late_itself_grants_one_more_interval(mock_clock):
    pulse, ended = Pulse(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, pulse, ended)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(SILENCE + INTERVAL + 5)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        mock_clock.jump(INTERVAL)
        await trio.testing.wait_all_tasks_blocked()
        assert len(ended) == 1


async def test_a_byte_in_the_granted_interval_is_life(mock_clock):
    pulse, ended = Pulse(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(watch, pulse, ended)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(SILENCE + INTERVAL + 5)
        await trio.testing.wait_all_tasks_blocked()
        pulse.heard()
        mock_clock.jump(INTERVAL)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        mock_clock.jump(SILENCE - INTERVAL)
        await trio.testing.wait_all_tasks_blocked()
        assert len(ended) == 1


async def test_an_echo_leaves_out_the_time_it_was_held(mock_clock):
    near, far = Pulse(), Pulse()
    assert far.echo() is None
    sent = trio.current_time()
    mock_clock.jump(0.02)
    assert far.beaten(Heartbeat(sent))
    mock_clock.jump(0.7)
    echo = far.echo()
    mock_clock.jump(0.03)
    near.beaten(Heartbeat(0.0, echo))
    assert near.rtt == pytest.approx(0.05)
    assert not far.beaten(Heartbeat(sent))


async def test_round_trips_are_smoothed(mock_clock):
    pulse = Pulse()
    for rtt in (0.1, 0.2):
        pulse.beaten(Heartbeat(0.0, trio.current_time() - rtt))
    assert pulse.rtt == pytest.approx(0.12)
