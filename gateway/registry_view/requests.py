"""Requests on their way to the registered services.

1. A request goes to the healthy service with the least to do for its weight, and to the next one while nothing was emitted.
2. At most `MAX_IN_FLIGHT` requests are under way on one service.
3. Every request is counted once on each service that it was sent to; one whose client went away is neither good nor bad.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gateway.registry_view.offers import offers, serving
from mesh.beyond_text import refuse_begun
from mesh.errors import BadRequest, Busy, MeshError, NotFound, Unavailable
from mesh.messages.inference import Accepted

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gateway.registry_view.service import ForeignService
    from mesh.messages.inference import Event, InferenceRequest
    from mesh.openai.remote.client import RemoteClient
    from mesh.service import Emit

MAX_IN_FLIGHT = 256
RETRY_AFTER = 2.0
_SUSPICIOUS = frozenset(("service_unreachable", "service_denied", "model_not_found"))
"""Codes after which a service is probed at once."""


class Requests:
    """An inference service over `services`, which may change at any time."""

    def __init__(
        self, services: Mapping[str, ForeignService], client: RemoteClient, suspect: Callable[[ForeignService], None]
    ) -> None:
        self._services = services
        self._client = client
        self._suspect = suspect
        self._running = 0
        self._idle = trio.Event()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request on one of them. Raises MeshError."""
        self._running += 1
        try:
            await self._search(request, _Once(emit))
        finally:
            self._running -= 1
            if not self._running:
                self._idle.set()
                self._idle = trio.Event()

    async def idle(self) -> None:
        """Wait until no request runs. No time limit of its own."""
        while self._running:
            await self._idle.wait()

    async def _search(self, request: InferenceRequest, once: _Once) -> None:
        refuse_begun(request, request.model)
        services = serving(self._services.values(), request.model)
        error = self._nobody(request.model)
        for service in sorted(services, key=_burden):
            if self._services.get(service.name) is not service:
                continue
            try:
                await self._ask(service, request, once.emit)
            except MeshError as said:
                error = said
                if once.started or not _others_may_do(said):
                    raise
            else:
                return
        raise error

    async def _ask(self, service: ForeignService, request: InferenceRequest, emit: Emit) -> None:
        if len(service.requests) >= MAX_IN_FLIGHT:
            raise Busy(f"service {service.name} has {MAX_IN_FLIGHT} requests under way", retry_after=RETRY_AFTER)
        scope, began = trio.CancelScope(), trio.current_time()
        service.requests.add(scope)
        service.request_count += 1
        try:
            with scope:
                await self._exchange(service, request, emit)
                service.succeeded(trio.current_time() - began)
            if scope.cancelled_caught:
                raise Unavailable(f"service {service.name} was removed; send the request again", code="service_removed")
        except MeshError as error:
            service.error_count += 1
            if error.code in _SUSPICIOUS:
                self._suspect(service)
            raise
        finally:
            service.requests.discard(scope)

    async def _exchange(self, service: ForeignService, request: InferenceRequest, emit: Emit) -> None:
        base = service.registration.base
        try:
            await self._client.infer(base, request, emit, avoid=["top_k"] if service.plain else [])
        except BadRequest as error:
            if service.plain or "top_k" not in f"{error.param} {error.message}":
                raise
            service.plain = True
            await self._client.infer(base, request, emit, avoid=["top_k"])

    def _nobody(self, model: str) -> MeshError:
        if any(offers(service, model) for service in self._services.values()):
            message = f"no service with {model[:200]!r} is healthy right now"
            return Unavailable(message, code="model_unavailable", retry_after=RETRY_AFTER)
        return NotFound(f"no registered service has {model[:200]!r}", code="model_not_found", param="model")


class _Once:
    """Passes events on, and knows whether the asker has seen output; a second `Accepted` is none of the asker's business."""

    def __init__(self, emit: Emit) -> None:
        self.started = False
        self._emit = emit
        self._accepted = False

    def emit(self, event: Event) -> None:
        if isinstance(event, Accepted):
            if self._accepted:
                return
            self._accepted = True
        else:
            self.started = True
        self._emit(event)


def _burden(service: ForeignService) -> tuple[float, float]:
    weight = service.registration.weight
    return len(service.requests) / weight, service.request_count / weight


def _others_may_do(error: MeshError) -> bool:
    return error.retriable or error.code == "model_not_found"
