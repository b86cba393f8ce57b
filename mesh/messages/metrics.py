"""What a node tells of its machine and its engines, when a peer asks on their link."""

from __future__ import annotations

import msgspec

from mesh.messages.worker import EngineStats


class CpuFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's processor (contract R68); `core_count` are those that the node may use."""

    utilization_percent: float = 0.0
    core_count: int = 0
    per_core_percent: list[float] = []


class MemoryFigures(msgspec.Struct, frozen=True, kw_only=True):
    """The machine's memory (contract R69), in 10^9 bytes."""

    used_gb: float = 0.0
    total_gb: float = 0.0
    utilization_percent: float = 0.0


class NodeMetrics(msgspec.Struct, frozen=True, kw_only=True):
    """One node at one moment. `engine` holds the built-in engines together, with cache and gpu; None where there is none."""

    cpu: CpuFigures
    memory: MemoryFigures
    engine: EngineStats | None = None


class Measure(msgspec.Struct, frozen=True, tag="measure"):
    """The sender wants to know how the receiver is. Only with the feature `metrics`; answered by one `Measured`."""


class Measured(msgspec.Struct, frozen=True, tag="measured"):
    """How the sender is."""

    metrics: NodeMetrics


MetricsControl = Measure | Measured
