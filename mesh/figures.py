"""Figures of several engines as those of one. Whatever another machine says, only numbers from 0 on are computed with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from mesh.messages.worker import CacheStats, EngineStats, GpuStats

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def number(value: float) -> float:
    """A figure that can be computed with: nonsense counts as nothing."""
    return value if math.isfinite(value) and value > 0 else 0.0


def weighted(pairs: Iterable[tuple[float, float]]) -> float:
    """The mean of (value, weight); 0 where nothing has weight."""
    known = [(number(value), number(weight)) for value, weight in pairs]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else 0.0


def engines_together(engines: Sequence[EngineStats], *, gpu: GpuStats | None) -> EngineStats:
    """Counts added up; times and rates weighted by what they were measured over."""

    def mean(name: str) -> float:
        return weighted((getattr(engine, name), engine.completed_requests) for engine in engines)

    def total(name: str) -> int:
        return sum(int(number(getattr(engine, name))) for engine in engines)

    return EngineStats(
        total_requests=total("total_requests"),
        completed_requests=total("completed_requests"),
        failed_requests=total("failed_requests"),
        total_tokens_generated=total("total_tokens_generated"),
        avg_queue_time_ms=mean("avg_queue_time_ms"),
        avg_prefill_time_ms=mean("avg_prefill_time_ms"),
        avg_decode_time_ms=mean("avg_decode_time_ms"),
        queue_size=total("queue_size"),
        queue_capacity=total("queue_capacity"),
        concurrent_requests=total("concurrent_requests"),
        preemptions=total("preemptions"),
        broken_steps=total("broken_steps"),
        cache=caches_together([engine.cache for engine in engines]),
        gpu=gpu,
    )


def caches_together(caches: Sequence[CacheStats]) -> CacheStats:
    """Counts added up, and the hit rate over all requests."""

    def total(name: str) -> int:
        return sum(int(number(getattr(cache, name))) for cache in caches)

    hits, misses = total("hits"), total("misses")
    return CacheStats(
        hit_rate=hits / (hits + misses) if hits + misses else 0.0,
        hits=hits,
        misses=misses,
        evictable_size=total("evictable_size"),
        protected_size=total("protected_size"),
        total_cached=total("total_cached"),
        total_capacity=total("total_capacity"),
        evictions=total("evictions"),
        node_count=total("node_count"),
    )


def gpus_together(gpus: Sequence[GpuStats]) -> GpuStats | None:
    """Memory added up, utilisation weighted by it, the highest temperature; None where there are none."""
    if not gpus:
        return None
    busy = [(gpu.utilization_percent, gpu.memory_total_gb) for gpu in gpus if gpu.utilization_percent is not None]
    warm = [number(gpu.temperature_c) for gpu in gpus if gpu.temperature_c is not None]
    return GpuStats(
        utilization_percent=weighted(busy) if busy else None,
        memory_used_gb=sum(number(gpu.memory_used_gb) for gpu in gpus),
        memory_total_gb=sum(number(gpu.memory_total_gb) for gpu in gpus),
        temperature_c=max(warm, default=None),
    )
