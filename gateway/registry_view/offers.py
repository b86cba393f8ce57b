"""What the registered services have to offer, as the mesh is told."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.registry_view.service import ForeignService

SLOTS = 8
"""What one service is taken to do at once, for want of a better number."""
BACKEND = "openai-api"
_CAPABILITIES = Capabilities(protocols=["openai"])


def serving(services: Iterable[ForeignService], model: str) -> list[ForeignService]:
    """Those that can be asked for the model now."""
    return [service for service in services if service.is_healthy and offers(service, model)]


def offers(service: ForeignService, model: str) -> bool:
    """True when it has the model, healthy or not."""
    return service.registration.routable and any(one.id == model for one in service.models)


def entries(services: Iterable[ForeignService]) -> list[ModelEntry]:
    """One entry per model, ready while a healthy service has it; the ready ones first, then by id."""
    found: dict[str, ModelEntry] = {}
    # The healthy ones last: their word stays.
    for service in sorted(services, key=lambda one: one.is_healthy):
        if service.registration.routable:
            found |= {entry.id: entry for entry in _entries_of(service)}
    return sorted(found.values(), key=lambda entry: (entry.state != "ready", entry.id))


def _entries_of(service: ForeignService) -> list[ModelEntry]:
    return [
        ModelEntry(
            id=model.id,
            state="ready" if service.is_healthy else "failed",
            context_length=model.context_length,
            created=model.created,
            weight=service.registration.weight,
            backend=BACKEND,
            capabilities=_CAPABILITIES,
        )
        for model in service.models
    ]


def load(services: Iterable[ForeignService]) -> dict[str, ModelLoad]:
    """How busy they are, by model."""
    known = list(services)
    running: dict[str, int] = {}
    slots: dict[str, int] = {}
    for service in known:
        for model in service.models if service.is_healthy else []:
            running[model.id] = running.get(model.id, 0) + len(service.requests)
            slots[model.id] = slots.get(model.id, 0) + SLOTS
    return {
        entry.id: ModelLoad(entry.state, running=running.get(entry.id, 0), slots=slots.get(entry.id, 0))
        for entry in entries(known)
    }
