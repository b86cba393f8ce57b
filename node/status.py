"""What a node says of its backends: the status report of `mesh.status`, one backend after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.health import ASKABLE, Level, level
from mesh.status import Counted, Json, backend_type, capabilities, metrics, report, task_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.messages.link import ModelLoad
    from mesh.messages.record import ModelEntry
    from node.backends.base import Backend
    from node.backends.usage import Usage
    from node.service import NodeService


def node_report(service: NodeService, endpoint: str) -> Json:
    """The body of P+1's `GET /status`. `endpoint` is where its models are asked: P."""
    entries, loads = {entry.id: entry for entry in service.entries()}, service.load()
    models: dict[Backend, list[str]] = {}
    for model, backend in service.backends.items():
        models.setdefault(backend, []).append(model)
    usages = [service.usage(backend) for backend in models]
    return report(
        [
            describe(backend, [entries[model] for model in named if model in entries], loads, service.usage(backend), endpoint)
            for backend, named in models.items()
        ],
        requests=sum(usage.requests for usage in usages),
        successful=sum(usage.successful for usage in usages),
        failed=sum(usage.failed for usage in usages),
    )


def node_level(service: NodeService) -> Level:
    """How the node as a whole does."""
    backends = set(service.backends.values())
    return level(
        (backend.status().state for backend in backends),
        died=any(has_died(backend) for backend in backends),
        failing=any(service.usage(backend).failing for backend in backends),
    )


def has_died(backend: Backend) -> bool:
    """It is not there, and was, or tried to be."""
    status = backend.status()
    return status.state not in ASKABLE and status.last_error is not None


def describe(backend: Backend, entries: Sequence[ModelEntry], loads: dict[str, ModelLoad], usage: Usage, endpoint: str) -> Json:
    """One backend and its models."""
    status = backend.status()
    return {
        "id": backend.entry.id,
        "name": backend.entry.id,
        "type": backend_type(backend.entry.backend),
        "status": level([status.state], died=has_died(backend), failing=usage.failing),
        "endpoint": endpoint,
        "tasks": task_names(task for entry in entries for task in (entry.capabilities.tasks or [entry.task])),
        "protocols": sorted({protocol for entry in entries for protocol in entry.capabilities.protocols}),
        "restarts": status.restarts,
        "last_error": status.last_error,
        "models": [capabilities(entry) for entry in entries],
        "metrics": metrics(
            Counted(
                requests=usage.requests,
                successful=usage.successful,
                failed=usage.failed,
                latency=usage.latency,
                queue=sum(loads[entry.id].waiting for entry in entries if entry.id in loads),
                active=usage.active,
                models_loaded=sum(entry.state == "ready" for entry in entries),
                uptime=round(status.uptime, 3) or None,
            )
        ),
    }
