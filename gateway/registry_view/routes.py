"""The nine endpoints of the older registry (contract R22 to R26).

1. Reading is free. Writing is for programs on this machine while the gateway has no keys (`only_local`): not for other machines,
   not through a proxy, and not for web pages of elsewhere that a browser here shows.
2. What is a peer of the mesh cannot be written: 409.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

from gateway import report
from gateway.registry_view import clock
from gateway.registry_view.registration import read_beat, read_change, read_registration
from gateway.registry_view.view import foreign_service
from mesh.errors import BadRequest, Denied
from mesh.http import Response
from mesh.http.origin import is_local
from mesh.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.registry_view.foreign import ForeignServices
    from gateway.registry_view.service import ForeignService
    from gateway.registry_view.view import Service, View
    from mesh.http import Request, Router

_FORWARDED = ("forwarded", "x-forwarded-for", "x-real-ip")


def only_local(request: Request, *, what: str = "services are registered, changed and removed") -> None:
    """Raises Denied unless a program on this machine asks."""
    if not is_loopback(request.client) or any(name in request.headers for name in _FORWARDED):
        raise Denied(
            f"{what} from the gateway's own machine only, as it has no admin key; call http://127.0.0.1 there",
            status=403,
            code="not_local",
        )
    origin = request.headers.get("origin")
    if origin is not None and not is_local(origin):
        raise Denied("web pages of other machines may not ask for this", status=403, code="origin_not_allowed")


def is_loopback(client: str) -> bool:
    """True for a client on this machine."""
    try:
        address = ipaddress.ip_address(client)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


class RegistryRoutes:
    """The routes over one gateway. `may_write` raises Denied for those who may not."""

    def __init__(self, view: View, foreign: ForeignServices, *, may_write: Callable[[Request], None] = only_local) -> None:
        self._view = view
        self._foreign = foreign
        self._may_write = may_write

    def mount(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/health", self._health)
        router.add("GET", "/stats", self._stats)
        router.add("GET", "/services", self._list)
        router.add("POST", "/services", self._register)
        router.add("GET", "/services/{name}", self._one)
        router.add("PUT", "/services/{name}", self._change)
        router.add("DELETE", "/services/{name}", self._remove)
        router.add("GET", "/services/{name}/health", self._probe)
        router.add("POST", "/services/{name}/heartbeat", self._beat)

    async def _health(self, _request: Request) -> Response:
        services = self._view.all()
        healthy = sum(service["is_healthy"] for service in services)
        body = report.health(__version__, healthy=healthy, total=len(services))
        return Response.json({**body, "registry": True, "registered_services": len(services)})

    async def _stats(self, _request: Request) -> Response:
        return Response.json(self._view.stats())

    async def _list(self, request: Request) -> Response:
        services = self._view.all()
        if status := request.query.get("status"):
            services = [service for service in services if service["status"] == status]
        if healthy := request.query.get("healthy"):
            if healthy not in ("true", "false"):
                raise BadRequest("healthy must be true or false", param="healthy")
            services = [service for service in services if service["is_healthy"] is (healthy == "true")]
        return Response.json({"services": services, "total": len(services), "timestamp": clock.now()})

    async def _one(self, request: Request) -> Response:
        return Response.json(self._view.get(request.params["name"]))

    async def _register(self, request: Request) -> Response:
        self._may_write(request)
        registration = read_registration(request)
        self._view.check_free(registration.name)
        service = await self._foreign.register(registration)
        return Response.json(self._done(f"service {service.name} is registered", service), 201)

    async def _change(self, request: Request) -> Response:
        known = self._writable(request)
        service = await self._foreign.register(read_change(request, known.registration))
        return Response.json(self._done(f"service {service.name} is updated", service))

    async def _remove(self, request: Request) -> Response:
        name = self._writable(request).name
        await self._foreign.remove(name)
        return Response.json({"message": f"service {name} is removed; requests in flight may finish"})

    async def _beat(self, request: Request) -> Response:
        service = self._writable(request)
        await self._foreign.beat(service.name, read_beat(request))
        return Response.json({"message": f"heartbeat of {service.name} received", "timestamp": clock.now()})

    async def _probe(self, request: Request) -> Response:
        name = request.params["name"]
        if name in self._foreign.services:
            await self._foreign.probe(self._foreign.get(name))
        found = self._view.get(name)
        health = {key: found[key] for key in ("health_status", "is_healthy", "last_heartbeat")}
        return Response.json({"service": name, **health, "timestamp": clock.now()})

    def _writable(self, request: Request) -> ForeignService:
        """The service that the request wants to change. Raises Denied, Conflict, NotFound."""
        self._may_write(request)
        name = request.params["name"]
        self._view.check_free(name)
        return self._foreign.get(name)

    def _done(self, message: str, service: ForeignService) -> dict[str, str | Service]:
        if self._foreign.problem:
            message += f", but will not survive a restart of the gateway: {self._foreign.problem}"
        return {"message": message, "service": foreign_service(service)}
