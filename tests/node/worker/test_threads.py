"""The number of threads: which are tried, which is taken, and what trying leaves behind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from node.worker import device, loader, threads
from node.worker.fused.int8 import Int8
from node.worker.fused.linear import Packed, Plain
from node.worker.loader import Options, load
from node.worker.threads import Clocks, Timing, candidates, choose, settle
from tests.node.worker.greedy import MARGIN

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def cores(monkeypatch: pytest.MonkeyPatch, *, allowed: int, physical: int | None) -> None:
    monkeypatch.setattr(device.os, "sched_getaffinity", lambda _: set(range(allowed)), raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: physical or allowed)
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda logical: physical)


@pytest.mark.parametrize(
    ("allowed", "physical", "expected"),
    [(1, 1, [1]), (2, 2, [1, 2]), (4, 2, [1, 2, 4]), (8, 8, [1, 3, 7]), (16, 8, [1, 3, 7, 15]), (4, None, [1, 2, 4])],
)
def test_what_is_tried_depends_on_the_cores(
    monkeypatch: pytest.MonkeyPatch, allowed: int, physical: int | None, expected: list[int]
) -> None:
    cores(monkeypatch, allowed=allowed, physical=physical)
    assert candidates() == expected


@pytest.mark.parametrize(
    ("timings", "expected"),
    [
        ({1: (1.0, 9.0)}, 1),
        ({1: (1.0, 9.0), 2: (0.6, 5.0)}, 2),
        ({1: (1.0, 9.0), 2: (0.95, 9.0)}, 1),
        ({1: (1.0, 9.0), 2: (1.0, 5.0)}, 2),
        ({1: (1.0, 9.0), 2: (1.05, 5.0)}, 1),
        ({1: (1.0, 9.0), 2: (0.6, 5.0), 4: (0.58, 4.8)}, 2),
        ({1: (1.0, 9.0), 2: (0.95, 9.0), 4: (0.5, 9.0)}, 4),
        ({4: (0.5, 9.0), 1: (0.5, 9.0), 2: (0.5, 9.0)}, 1),
    ],
)
def test_more_threads_are_taken_for_a_clear_gain_only(timings: dict[int, tuple[float, float]], expected: int) -> None:
    assert choose({number: Timing(*each) for number, each in timings.items()}) == expected


class Machine:
    """Clocks of a machine on which a step takes what `seconds` says of the number of threads; `share` of it is computing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], share: float = 1.0) -> None:
        self._now = 0.0
        self.tried: list[int] = []
        self.clocks = Clocks(passed=lambda: self._now, computed=lambda: self._now * share)
        run = loader.SlotRunner.run

        def slow(runner: Any, shares: Any) -> torch.Tensor:
            self.tried.append(torch.get_num_threads())
            self._now += seconds[torch.get_num_threads()]
            return run(runner, shares)

        monkeypatch.setattr(loader.SlotRunner, "run", slow)
        monkeypatch.setattr(threads, "candidates", lambda: [1, 2])
        monkeypatch.setattr(threads, "default_threads", lambda: 2)


@pytest.fixture
def runner(make_driver: Any) -> Any:
    return make_driver(slots=2).engine._runner


@pytest.mark.parametrize(
    ("seconds", "share", "expected"),
    [
        ({1: 0.004, 2: 0.002}, 1.0, 2),
        ({1: 0.002, 2: 0.004}, 1.0, 1),
        ({1: 0.002, 2: 0.002}, 1.0, 1),
        # Half of the time went to others: that one thread is as fast as two says nothing.
        ({1: 0.002, 2: 0.002}, 0.5, 2),
    ],
)
def test_the_best_number_computes_from_then_on(
    runner: Any, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float], share: float, expected: int
) -> None:
    machine = Machine(monkeypatch, seconds, share)
    assert settle(runner, 512, clocks=machine.clocks) == expected
    assert torch.get_num_threads() == expected
    assert {1, 2} == set(machine.tried)


def test_trying_ends_in_time(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {1: 0.04, 2: 0.02})
    settle(runner, 512, clocks=machine.clocks)
    assert machine.clocks.passed() < threads.TRIAL + 12 * 0.04
    # Steps are long: one round is not even begun.
    machine = Machine(monkeypatch, {1: 10.0, 2: 5.0})
    assert settle(runner, 512, clocks=machine.clocks) == 2
    assert set(machine.tried) == {2}
    assert len(machine.tried) <= 4


def test_a_single_core_is_not_tried(runner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(monkeypatch, {1: 0.1, 2: 0.1})
    monkeypatch.setattr(threads, "candidates", lambda: [1])
    assert settle(runner, 512, clocks=machine.clocks) == 1
    assert machine.tried == []


def test_trying_leaves_nothing_behind(make_driver: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    driver, other = make_driver(slots=2), make_driver(slots=2)
    number = settle(driver.engine._runner, 512)
    assert "threads that compute: " in caplog.text
    torch.set_num_threads(number)
    assert driver.engine.stats.cache.total_cached == 0
    for prompt in ([5, 6, 7], list(range(20, 90))):
        assert driver.answer(prompt=prompt, max_tokens=8).ids == other.answer(prompt=prompt, max_tokens=8).ids


def test_the_loader_tries_when_it_is_told_to(models_folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "settle", lambda runner, vocabulary: 7)
    options = Options(path=models_folder / "llama", device="cpu", dtype="float32", slots=2, try_threads=True)
    assert load(options, lambda _: None)[1].threads == 7
    plain = Options(path=models_folder / "llama", device="cpu", dtype="float32", slots=2)
    assert load(plain, lambda _: None)[1].threads == torch.get_num_threads()


@pytest.mark.parametrize("make", [Plain, Packed, Int8], ids=["plain", "packed", "int8"])
def test_the_number_of_threads_moves_a_product_far_less_than_the_margin(make: Any) -> None:
    """Nodes that have tried different numbers of threads must still give the same tokens."""
    source = torch.Generator().manual_seed(5)
    product = make(torch.randn(1536, 768, generator=source) / 768**0.5)
    for rows in (4, 100):
        inputs, found = torch.randn(rows, 768, generator=source), []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(product(inputs))
        assert all(float((each - found[0]).abs().max()) < MARGIN / 10 for each in found)
