"""What a node measures of its machine, and puts together of its engines."""

from __future__ import annotations

from mesh.messages.worker import Alive, EngineStats, GpuStats
from node.backends.base import BackendStatus
from node.metrics import Meter


def status(stats: EngineStats | None) -> BackendStatus:
    engine = None if stats is None else Alive(step=1, running=0, waiting=0, busy_seconds=0.0, stats=stats)
    return BackendStatus(state="ready", running=True, engine=engine)


def test_the_machine_is_measured() -> None:
    measured = Meter(list).measure()
    assert measured.cpu.core_count >= 1
    assert len(measured.cpu.per_core_percent) >= measured.cpu.core_count
    assert 0 <= measured.cpu.utilization_percent <= 100
    assert 0 < measured.memory.used_gb < measured.memory.total_gb
    assert 0 < measured.memory.utilization_percent <= 100
    assert measured.engine is None


def test_engines_are_one_and_their_accelerator_is_counted_once() -> None:
    gpu = GpuStats(memory_used_gb=3.0, memory_total_gb=8.0, temperature_c=40.0)
    statuses = [status(EngineStats(total_requests=2, gpu=gpu)), status(EngineStats(total_requests=3, gpu=gpu)), status(None)]
    engine = Meter(lambda: statuses).measure().engine
    assert engine is not None
    assert engine.total_requests == 5
    assert engine.gpu is not None
    assert (engine.gpu.memory_total_gb, engine.gpu.utilization_percent, engine.gpu.temperature_c) == (8.0, None, 40.0)
