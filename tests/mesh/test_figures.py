"""Figures of several engines together."""

from __future__ import annotations

import math

import pytest

from mesh.figures import caches_together, engines_together, gpus_together, number, weighted
from mesh.messages.worker import CacheStats, EngineStats, GpuStats


def test_counts_add_up_and_times_are_weighted_by_requests() -> None:
    engines = [
        EngineStats(total_requests=4, completed_requests=3, avg_queue_time_ms=10.0, cache=CacheStats(hits=3, misses=1)),
        EngineStats(total_requests=2, completed_requests=1, avg_queue_time_ms=50.0, cache=CacheStats(hits=0, misses=4)),
        EngineStats(queue_capacity=7),
    ]
    both = engines_together(engines, gpu=None)
    assert (both.total_requests, both.completed_requests, both.queue_capacity) == (6, 4, 7)
    assert both.avg_queue_time_ms == pytest.approx(20.0)
    assert (both.cache.hits, both.cache.misses, both.cache.hit_rate) == (3, 5, 3 / 8)


def test_nothing_together_is_nothing() -> None:
    assert engines_together([], gpu=None) == EngineStats()
    assert caches_together([]) == CacheStats()
    assert gpus_together([]) is None
    assert weighted([]) == 0.0


def test_gpus_are_weighted_by_memory_and_the_hottest_counts() -> None:
    gpus = [
        GpuStats(utilization_percent=100.0, memory_used_gb=10, memory_total_gb=30, temperature_c=50),
        GpuStats(utilization_percent=20.0, memory_used_gb=1, memory_total_gb=10, temperature_c=70),
        GpuStats(memory_used_gb=1, memory_total_gb=10),
    ]
    both = gpus_together(gpus)
    assert both is not None
    assert both.utilization_percent == pytest.approx(80.0)
    assert (both.memory_used_gb, both.memory_total_gb, both.temperature_c) == (12, 50, 70)


@pytest.mark.parametrize("nonsense", [math.nan, math.inf, -math.inf, -5.0])
def test_nonsense_counts_as_nothing(nonsense: float) -> None:
    assert number(nonsense) == 0.0
    assert weighted([(nonsense, 1.0), (4.0, 1.0)]) == 2.0
    engines = [
        EngineStats(completed_requests=1, avg_decode_time_ms=nonsense),
        EngineStats(completed_requests=1, avg_decode_time_ms=8.0),
    ]
    assert engines_together(engines, gpu=None).avg_decode_time_ms == 4.0
