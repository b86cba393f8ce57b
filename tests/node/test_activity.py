"""Real processes: what is read is what the kernel tells of them."""

import os
import signal
import subprocess
import sys

import psutil
import pytest
import trio

from node.activity import Activity

HANG_GUARD = 20


@pytest.fixture
def start():
    """Start a Python program; its pid."""
    started = []

    def begin(script: str) -> int:
        process = subprocess.Popen([sys.executable, "-S", "-c", f"print(1, flush=True)\n{script}"], stdout=subprocess.PIPE)
        started.append(process)
        process.stdout.readline()
        return process.pid

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


async def until(condition) -> None:
    with trio.fail_after(HANG_GUARD):
        while not condition():  # noqa: ASYNC110 - what another process does sets no event
            await trio.sleep(0.05)


async def test_who_computes_is_active_until_it_is_stopped(start) -> None:
    pid = start("while True: pass")
    activity = Activity(pid)
    assert activity.seen()
    os.kill(pid, signal.SIGSTOP)
    await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
    activity.seen()
    assert not activity.seen()


async def test_a_thread_beside_the_first_one_counts(start) -> None:
    pid = start("import threading, time\ndef run():\n  while True: pass\nthreading.Thread(target=run).start()\ntime.sleep(100)")
    activity = Activity(pid)
    activity.seen()
    await until(activity.seen)


async def test_who_waits_is_not_active(start) -> None:
    activity = Activity(start("import time; time.sleep(100)"))
    await until(lambda: not activity.seen())


async def test_who_was_killed_is_dying(start) -> None:
    pid = start("import time; time.sleep(100)")
    activity = Activity(pid)
    assert not activity.dying()
    os.kill(pid, signal.SIGKILL)
    await until(activity.dying)


def test_who_is_gone_is_not_active() -> None:
    assert not Activity(2**22 + 1).seen()
    assert Activity(2**22 + 1).dying()
