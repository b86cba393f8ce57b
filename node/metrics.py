"""How this node is: its machine, and what its built-in engines told last.

Workers on one accelerator see the same one, so it is counted once; which it is they do not tell, so equal sizes are taken for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]  # psutil ships no types

from mesh.figures import engines_together, gpus_together
from mesh.messages.metrics import CpuFigures, MemoryFigures, NodeMetrics
from node.hardware import cpu_count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.messages.worker import EngineStats
    from node.backends.base import BackendStatus

GB = 1e9
MAX_CORES = 1024
"""Cores that are told one by one."""


class Meter:
    """Utilisation is that since the last look, or since the start."""

    def __init__(self, statuses: Callable[[], Iterable[BackendStatus]]) -> None:
        self._statuses = statuses
        psutil.cpu_percent(percpu=True)

    def measure(self) -> NodeMetrics:
        """The figures of this moment. Never blocks."""
        cores = [float(percent) for percent in psutil.cpu_percent(percpu=True)]
        memory = psutil.virtual_memory()
        engines = [status.engine.stats for status in self._statuses() if status.engine is not None]
        return NodeMetrics(
            cpu=CpuFigures(
                utilization_percent=round(sum(cores) / max(1, len(cores)), 1),
                core_count=cpu_count(),
                per_core_percent=cores[:MAX_CORES],
            ),
            memory=MemoryFigures(
                used_gb=(memory.total - memory.available) / GB,
                total_gb=memory.total / GB,
                utilization_percent=float(memory.percent),
            ),
            engine=_together(engines),
        )


def _together(engines: list[EngineStats]) -> EngineStats | None:
    if not engines:
        return None
    seen = {engine.gpu.memory_total_gb: engine.gpu for engine in engines if engine.gpu is not None}
    return engines_together(engines, gpu=gpus_together(list(seen.values())))
