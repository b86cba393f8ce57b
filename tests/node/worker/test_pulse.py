"""The pulse goes on while the engine hangs, and shows that it does."""

from __future__ import annotations

from typing import Any

from node.worker.pulse import Pulse


def test_it_tells_what_the_engine_did_and_how_long_it_has_been_busy(make_driver: Any) -> None:
    driver = make_driver(slots=2)
    pulse = Pulse()
    assert (pulse.alive().step, pulse.alive().busy_seconds) == (0, 0.0)
    pulse.begin()
    driver.answer(prompt="A mesh", max_tokens=4)
    busy = pulse.alive()
    assert busy.step == 0
    assert 0 < busy.busy_seconds <= pulse.alive().busy_seconds
    pulse.end(driver.engine)
    after = pulse.alive()
    assert (after.step, after.running, after.busy_seconds) == (driver.engine.load.step, 0, 0.0)
    assert after.stats == driver.engine.stats
    assert after.stats.completed_requests == 1
    assert after.stats.avg_prefill_time_ms > 0


def test_while_busy_the_counters_are_looked_at_now_and_then(make_driver: Any) -> None:
    driver = make_driver(slots=2)
    pulse = Pulse()
    driver.submit(prompt="A mesh", max_tokens=20)
    driver.step()
    pulse.end(driver.engine)
    first = pulse.alive()
    driver.step()
    pulse.end(driver.engine)
    assert pulse.alive().step == first.step + 1
    assert pulse.alive().stats is first.stats


def test_failures_and_tokens_are_counted(make_driver: Any) -> None:
    driver = make_driver(slots=1)
    driver.answer(prompt="", max_tokens=4)
    outcome = driver.answer(prompt="A mesh", max_tokens=4)
    number = driver.submit(prompt="A mesh", max_tokens=40)
    driver.step()
    driver.engine.abort(number)
    driver.run()
    stats = driver.engine.stats
    assert (stats.total_requests, stats.completed_requests, stats.failed_requests) == (3, 1, 2)
    assert stats.total_tokens_generated == len(outcome.ids) + 1
    assert (stats.queue_size, stats.concurrent_requests, stats.queue_capacity) == (0, 0, 256)
