"""When the cores are wanted by others too, fewer threads compute; when they are free again, more."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise

import pytest

from node.worker import cores
from node.worker.cores import CALM, LONGEST_CALM, WINDOW, Cores, cpu_times


@dataclass
class Machine:
    """A clock, what the kernel says, and how many threads were asked for."""

    now: float = 0.0
    ran: float = 0.0
    waited: float = 0.0
    used: list[int] = field(default_factory=list)

    def times(self) -> tuple[float, float]:
        return self.ran, self.waited

    def cores(self, most: int) -> Cores:
        return Cores(most, times=self.times, clock=lambda: self.now, use=self.used.append)

    def spend(self, one: Cores, seconds: float, *, waiting: float) -> None:
        """Compute for so long; `waiting`: the share of it that threads had no core."""
        end = self.now + seconds
        while self.now < end:
            self.now += WINDOW
            self.ran += WINDOW * (1 - waiting)
            self.waited += WINDOW * waiting
            one.look()


def test_alone_all_threads_compute() -> None:
    machine = Machine()
    one = machine.cores(8)
    machine.spend(one, 60, waiting=0.05)
    assert machine.used == [8]


def test_crowded_cores_are_left_to_others_and_taken_again() -> None:
    machine = Machine()
    one = machine.cores(8)
    machine.spend(one, 2 * WINDOW, waiting=0.5)
    assert one.threads == 2
    machine.spend(one, 10, waiting=0.5)
    assert one.threads == 1
    machine.spend(one, 4 * CALM, waiting=0.0)
    assert machine.used == [8, 4, 2, 1, 2, 4, 8]


def test_tries_that_fail_come_ever_more_rarely() -> None:
    machine = Machine()
    one = machine.cores(2)
    tries: list[float] = []
    while machine.now < 2000:
        machine.spend(one, WINDOW, waiting=0.5 if one.threads == 2 else 0.0)
        if one.threads == 2:
            tries.append(machine.now)
    pauses = [later - earlier for earlier, later in pairwise(tries)]
    assert pauses == sorted(pauses)
    assert LONGEST_CALM <= pauses[-1] <= LONGEST_CALM + 4 * WINDOW
    machine.spend(one, LONGEST_CALM + 2 * CALM, waiting=0.0)
    machine.spend(one, WINDOW, waiting=0.5)
    machine.spend(one, CALM + 2 * WINDOW, waiting=0.0)
    assert one.threads == 2, "a try that held makes the next one come soon"


def test_who_hardly_computes_learns_nothing() -> None:
    machine = Machine()
    one = machine.cores(2)
    for _ in range(100):
        machine.now += 10
        machine.waited += 0.01
        one.look()
    assert machine.used == [2]


def test_where_the_kernel_tells_nothing_all_threads_compute(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(cores, "TASKS", tmp_path / "none")  # type: ignore[operator]
    assert cpu_times() is None
    machine = Machine()
    one = Cores(2, times=cpu_times, clock=lambda: machine.now, use=machine.used.append)
    machine.spend(one, 10, waiting=0.9)
    assert machine.used == [2]


@pytest.mark.skipif(not cores.TASKS.exists(), reason="no /proc here")
def test_the_kernel_counts_what_threads_run_and_wait() -> None:
    before = cpu_times()
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))

    threads = [threading.Thread(target=burn) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    after = cpu_times()
    stop.set()
    for thread in threads:
        thread.join()
    assert before is not None
    assert after is not None
    assert after[0] > before[0]
    assert after[1] >= before[1]
