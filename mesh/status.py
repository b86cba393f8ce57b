"""The status report: what backends there are, how they do and what they did, in one shape for all who tell."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from mesh.messages.record import ModelEntry

Json = dict[str, Any]

BackendType = Literal["GPU", "API", "CLI", "P2P", "WEBSOCKET", "MCP", "HYBRID"]
BACKEND_TYPES: tuple[BackendType, ...] = ("GPU", "API", "CLI", "P2P", "WEBSOCKET", "MCP", "HYBRID")
_TYPE_OF: dict[str, BackendType] = {
    "torch": "GPU",
    "command": "GPU",
    "vllm": "GPU",
    "sglang": "GPU",
    "llama-cpp": "GPU",
    "infinilm": "GPU",
    "infinilm-rust": "GPU",
    "mock": "GPU",
    "openai": "API",
    "anthropic": "API",
    "cli": "CLI",
    "websocket": "WEBSOCKET",
    "mcp": "MCP",
}
TASK_NAMES = {"chat": "text-generation", "completion": "text-generation", "embedding": "text-embedding"}
"""Our tasks by the names that clients of the WebSocket and of the status report use."""


@dataclass(frozen=True, kw_only=True)
class Counted:
    """What a backend did. Times in seconds; `uptime` None where nobody tells."""

    requests: int = 0
    successful: int = 0
    failed: int = 0
    latency: float = 0.0
    """Of the successful ones together."""
    queue: int = 0
    active: int = 0
    models_loaded: int = 0
    uptime: float | None = None


def backend_type(engine: str) -> BackendType:
    """The type of whatever a record calls its backend; what nobody here knows speaks some API."""
    return _TYPE_OF.get(engine.lower(), "API")


def task_names(tasks: Iterable[str]) -> list[str]:
    """Tasks as clients call them, sorted."""
    return sorted({TASK_NAMES.get(task, task) for task in tasks})


def capabilities(entry: ModelEntry) -> Json:
    """What one model can do (contract R81)."""
    can = entry.capabilities
    return {
        "id": entry.id,
        "state": entry.state,
        "tasks": task_names(can.tasks or [entry.task]),
        "streaming": can.streaming,
        "batching": can.batching,
        "max_batch": can.max_batch or None,
        "context_length": entry.context_length or None,
        "hardware_types": can.hardware_types,
        "protocols": can.protocols,
    }


def timestamp() -> str:
    """Now, ISO 8601 in UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def metrics(counted: Counted) -> Json:
    """The `metrics` of one backend (contract R74)."""
    ended = counted.successful + counted.failed
    average = counted.latency / counted.successful if counted.successful else None
    return {
        "requests": counted.requests,
        "successful": counted.successful,
        "failed": counted.failed,
        "success_rate": counted.successful / ended if ended else None,
        "avg_latency_ms": None if average is None else round(average * 1000, 3),
        "queue_size": counted.queue,
        "current_queue_size": counted.queue,
        "active_connections": counted.active,
        "models_loaded": counted.models_loaded,
        "uptime": counted.uptime,
    }


def report(backends: Sequence[Json], *, requests: int, successful: int, failed: int) -> Json:
    """The whole report over `backends`, each with at least type, status and tasks."""
    return {
        "total_backends": len(backends),
        "backends_by_type": dict(Counter(backend["type"] for backend in backends)),
        "backends_by_status": dict(Counter(backend["status"] for backend in backends)),
        "total_requests": requests,
        "total_successful": successful,
        "total_failed": failed,
        "supported_tasks": sorted({task for backend in backends for task in backend["tasks"]}),
        "backends": list(backends),
        "timestamp": timestamp(),
    }
