"""The parent's side of a light sleep, against a real process that speaks the worker's protocol, faults included."""

import os
import signal

import psutil
import pytest
import trio

from mesh.errors import BackendFailed, Unavailable
from mesh.messages.inference import Done
from node.backends import doze
from node.backends.torch import TorchBackend

HANG_GUARD = 20


@pytest.fixture
async def start(nursery, worker_settings):
    async def begin(behaviour: str = "well") -> TorchBackend:
        backend = TorchBackend(worker_settings(behaviour, sleep_level=1))
        with trio.fail_after(HANG_GUARD):
            await nursery.start(backend.run)
        return backend

    return begin


async def answers(backend, ask) -> bool:
    events = []
    await backend.infer(ask(), events.append)
    return isinstance(events[-1], Done)


async def until(condition) -> None:
    with trio.fail_after(HANG_GUARD):
        while not condition():  # noqa: ASYNC110 - what another process did sets no event
            await trio.sleep(0.005)


async def test_the_worker_stays_and_wakes_without_loading(start, ask, worker_log) -> None:
    backend = await start()
    pid, states = backend.status().pid, []
    backend.changed = lambda: states.append(backend.entry.state)
    with trio.fail_after(HANG_GUARD):
        await backend.sleep()
    status = backend.status()
    assert (status.state, status.running, status.pid, status.note) == ("asleep", False, pid, "given back")
    assert (backend.entry.state, backend.load.state) == ("asleep", "asleep")
    with pytest.raises(Unavailable) as refused:
        await backend.infer(ask(), lambda event: None)
    assert refused.value.code == "model_asleep"
    with trio.fail_after(HANG_GUARD):
        await backend.sleep()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(backend.wake)
            nursery.start_soon(backend.wake)
        await backend.wake()
    assert await answers(backend, ask)
    status = backend.status()
    assert (status.state, status.pid, status.restarts, status.note) == ("ready", pid, 0, None)
    assert (states[0], states[-1]) == ("asleep", "ready")
    assert backend.memory == 77
    assert [line.split()[0] for line in worker_log()].count("start") == 1


async def test_a_model_that_starts_asleep_is_not_loaded(nursery, worker_settings, worker_log, ask) -> None:
    backend = TorchBackend(worker_settings("well", sleep_level=1))
    await backend.sleep()
    with trio.fail_after(HANG_GUARD):
        await nursery.start(backend.run)
        assert (backend.entry.state, worker_log()) == ("asleep", [])
        await backend.wake()
    assert await answers(backend, ask)


async def test_a_worker_that_dies_in_its_sleep_is_not_started_before_it_is_woken(start, ask, worker_log) -> None:
    backend = await start()
    with trio.fail_after(HANG_GUARD):
        await backend.sleep()
        os.kill(backend.status().pid, signal.SIGKILL)
        await until(lambda: backend.status().pid is None)
        await trio.sleep(0.3)  # a restart would be at once
        assert [line.split()[0] for line in worker_log()].count("start") == 1
        assert backend.entry.state == "asleep"
        await backend.wake()
    assert await answers(backend, ask)
    assert backend.status().restarts == 0


@pytest.mark.parametrize("behaviour", ["dies-asleep", "dies-falling-asleep", "stays-awake"])
async def test_one_that_cannot_sleep_lightly_is_unloaded(start, ask, behaviour: str) -> None:
    backend = await start(behaviour)
    pid = backend.status().pid
    with trio.fail_after(HANG_GUARD):
        await backend.sleep()
        await until(lambda: backend.status().pid is None)
        assert backend.entry.state == "asleep"
        assert not psutil.pid_exists(pid)
        await backend.wake()
    assert await answers(backend, ask)
    assert backend.status().restarts == 0


async def test_one_that_dies_while_it_wakes_is_loaded_anew(start, ask, worker_log) -> None:
    backend = await start("dies-waking")
    with trio.fail_after(HANG_GUARD):
        await backend.sleep()
        await backend.wake()
    assert await answers(backend, ask)
    assert [line.split()[0] for line in worker_log()].count("start") == 2


async def test_one_that_finds_no_room_says_so_and_sleeps_on(start) -> None:
    backend = await start("stays-asleep")
    pid = backend.status().pid
    with trio.fail_after(HANG_GUARD):
        await backend.sleep()
        with pytest.raises(BackendFailed, match="OutOfMemoryError: no room") as failed:
            await backend.wake()
        await backend.sleep()
    assert failed.value.code == "wake_failed"
    assert (backend.entry.state, backend.status().pid) == ("asleep", pid)


async def test_one_that_does_not_answer_is_ended_and_loaded_anew(start, ask, monkeypatch) -> None:
    monkeypatch.setattr(doze, "LIMIT", 0.3)
    backend = await start("ignores")
    with trio.fail_after(HANG_GUARD):
        await backend.sleep()
        assert (backend.entry.state, backend.status().pid) == ("asleep", None)
        await backend.wake()
    assert await answers(backend, ask)


async def test_a_wake_that_nobody_waits_for_any_more_can_be_slept_away(start, ask) -> None:
    backend = await start()
    with trio.fail_after(HANG_GUARD):
        await backend.sleep()
        with trio.move_on_after(0):
            await backend.wake()
        await backend.sleep()
        assert backend.entry.state == "asleep"
        await backend.wake()
    assert await answers(backend, ask)
