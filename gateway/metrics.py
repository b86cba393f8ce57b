"""GET /v1/metrics: every node's figures, asked for on the links at the moment of asking, and all of them together.

1. At the top counts and sizes are added up; utilisation is weighted by cores or memory, the temperature is the highest.
2. A node that does not answer in time, or is too old to know the question, has nulls and counts for nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from gateway import report
from mesh.figures import engines_together, gpus_together, number, weighted
from mesh.http import Request, Response
from mesh.link import Link
from mesh.messages.metrics import CpuFigures, MemoryFigures, NodeMetrics
from mesh.messages.worker import EngineStats

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.http import Router
    from mesh.measuring import Measuring
    from mesh.registry import PeerView, Registry

Json = dict[str, Any]
MAX_CORES = 1024
"""Of one node that are shown."""


class MetricsRoutes:
    """The route."""

    def __init__(self, registry: Registry, measuring: Measuring) -> None:
        self._registry = registry
        self._measuring = measuring

    def mount(self, router: Router) -> None:
        """Add the route."""
        router.add("GET", "/v1/metrics", self._metrics)

    async def _metrics(self, _request: Request) -> Response:
        views = self._registry.newest(self._registry.nodes(), report.MAX_SHOWN)
        found = await self._measuring.ask_all(view.link for view in views if isinstance(view.link, Link))
        nodes = {view.peer_id: _node(view, found.get(view.peer_id)) for view in views}
        return Response.json({**_shape(together(list(found.values()))), "nodes": nodes, "timestamp": report.timestamp()})


def together(nodes: Sequence[NodeMetrics]) -> NodeMetrics:
    """All nodes as one."""
    cpus = [node.cpu for node in nodes]
    memories = [node.memory for node in nodes]
    used, total = (sum(number(getattr(memory, name)) for memory in memories) for name in ("used_gb", "total_gb"))
    engines = [node.engine for node in nodes if node.engine is not None]
    return NodeMetrics(
        cpu=CpuFigures(
            utilization_percent=weighted((cpu.utilization_percent, cpu.core_count) for cpu in cpus),
            core_count=sum(int(number(cpu.core_count)) for cpu in cpus),
        ),
        memory=MemoryFigures(
            used_gb=used,
            total_gb=total,
            utilization_percent=weighted((memory.utilization_percent, memory.total_gb) for memory in memories),
        ),
        engine=engines_together(engines, gpu=gpus_together([engine.gpu for engine in engines if engine.gpu is not None])),
    )


def _node(view: PeerView, metrics: NodeMetrics | None) -> Json:
    about: Json = {"name": view.record.name, "models": [entry.id for entry in view.record.models]}
    if metrics is None:
        return {**about, "cpu": None, "memory": None, "gpu": None, "engine": None, "cache": None}
    cores = [number(percent) for percent in metrics.cpu.per_core_percent[:MAX_CORES]]
    shape = _shape(metrics)
    return {**about, **shape, "cpu": {**shape["cpu"], "per_core_percent": cores}}


def _shape(metrics: NodeMetrics) -> Json:
    """The names of the contract: cache and gpu stand beside the engine."""
    cpu: Json = msgspec.to_builtins(metrics.cpu)
    del cpu["per_core_percent"]
    engine: Json = msgspec.to_builtins(metrics.engine or EngineStats())
    cache, gpu = engine.pop("cache"), engine.pop("gpu")
    told = metrics.engine is not None
    return {
        "cpu": cpu,
        "memory": msgspec.to_builtins(metrics.memory),
        "gpu": gpu,
        "engine": engine if told else None,
        "cache": cache if told else None,
    }
