"""What the registered services have to offer, as the mesh is told."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.registry_view.service import ForeignService
    from mesh.openai.remote.client import RemoteModel

SLOTS = 8
"""What one service is taken to do at once, for want of a better number."""
MAX_OFFERED = 1000
BACKEND = "openai-api"
_CAPABILITIES = Capabilities(protocols=["openai"])


def serving(services: Iterable[ForeignService], model: str) -> list[ForeignService]:
    """Those that can be asked for the model now."""
    return [service for service in services if service.is_healthy and offers(service, model)]


def offers(service: ForeignService, model: str) -> bool:
    """True when it has the model, healthy or not."""
    return service.registration.routable and model in service.model_ids


def entries(services: Iterable[ForeignService]) -> list[ModelEntry]:
    """One entry per model, ready while a healthy service has it; the ready ones first, then by id. At most MAX_OFFERED."""
    found: dict[str, ModelEntry] = {}
    for service in sorted(services, key=lambda one: not one.is_healthy):
        for model in service.models if service.registration.routable else []:
            if model.id not in found and len(found) < MAX_OFFERED:
                found[model.id] = _entry(service, model)
    return sorted(found.values(), key=lambda entry: (entry.state != "ready", entry.id))


def _entry(service: ForeignService, model: RemoteModel) -> ModelEntry:
    return ModelEntry(
        id=model.id,
        state="ready" if service.is_healthy else "failed",
        context_length=model.context_length,
        created=model.created,
        weight=service.registration.weight,
        backend=BACKEND,
        capabilities=_CAPABILITIES,
    )


def load(services: Iterable[ForeignService], offered: Iterable[ModelEntry]) -> dict[str, ModelLoad]:
    """How busy they are, by model, for each of `offered`."""
    running: Counter[str] = Counter()
    slots: Counter[str] = Counter()
    for service in services:
        for model in service.model_ids if service.is_healthy else []:
            running[model] += len(service.requests)
            slots[model] += SLOTS
    return {entry.id: ModelLoad(entry.state, running=running[entry.id], slots=slots[entry.id]) for entry in offered}
