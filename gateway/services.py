"""The older registry's view of the mesh, read only: `GET /services` and `GET /services/{name}` (contract, "Shapes").

1. It is a projection: nothing is stored here, a node that is gone from the mesh is gone from the list.
2. A node appears twice: `X` is its supervisor at P+1, `X-server` its OpenAI port at P.
3. Of two nodes of one name the one with the later peer id is shown as `name@<last 8 of the peer id>`.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import BadRequest, NotFound
from mesh.http import Response

if TYPE_CHECKING:
    from mesh.http import Request, Router
    from mesh.registry import PeerView, Registry

Service = dict[str, Any]


class Services:
    """The routes, over one gateway's registry."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def mount(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/services", self._list)
        router.add("GET", "/services/{name}", self._one)

    async def _list(self, request: Request) -> Response:
        services = self.all()
        if status := request.query.get("status"):
            services = [service for service in services if service["status"] == status]
        if healthy := request.query.get("healthy"):
            if healthy not in ("true", "false"):
                raise BadRequest("healthy must be true or false", param="healthy")
            services = [service for service in services if service["is_healthy"] is (healthy == "true")]
        return Response.json({"services": services, "total": len(services), "timestamp": _now()})

    async def _one(self, request: Request) -> Response:
        name = request.params["name"]
        for service in self.all():
            if service["name"] == name:
                return Response.json(service)
        raise NotFound(f"no service is called {name!r}; GET /services lists them")

    def all(self) -> list[Service]:
        """Every node's two services, sorted by name."""
        taken: set[str] = set()
        services: list[Service] = []
        for view in sorted(self._registry.nodes(), key=lambda view: view.record.peer_id):
            name = view.record.name
            if name in taken:
                name = f"{name}@{view.record.peer_id[-8:]}"
            taken.add(name)
            services += [_supervisor(view, name), _server(view, name)]
        return sorted(services, key=lambda service: str(service["name"]))


def _supervisor(view: PeerView, name: str) -> Service:
    kinds = sorted({entry.backend for entry in view.record.models})
    metadata = {"type": ",".join(kinds), "babysitter": "enhanced", "peer_id": view.record.peer_id}
    return _service(view, name, view.record.ports.get("supervisor", 0), metadata)


def _server(view: PeerView, name: str) -> Service:
    models = view.record.models
    metadata = {
        "type": "openai-api",
        "parent_service": name,
        "models": [entry.id for entry in models],
        "models_list": [msgspec.to_builtins(entry) for entry in models],
        "weight": max((entry.weight for entry in models), default=1.0),
        "peer_id": view.record.peer_id,
    }
    return _service(view, f"{name}-server", view.record.ports.get("service", 0), metadata)


def _service(view: PeerView, name: str, port: int, metadata: dict[str, Any]) -> Service:
    host = _host(view)
    healthy = any(entry.state in ("ready", "asleep") for entry in view.record.models)
    return {
        "name": name,
        "host": host,
        "port": port,
        "hostname": view.record.name,
        "url": f"http://{f'[{host}]' if ':' in host else host}:{port}",
        "status": "running" if healthy else "unhealthy",
        "timestamp": _now(),
        "last_heartbeat": _now(),  # a node is listed only while its link answers every second
        "health_status": "healthy" if healthy else "unhealthy",
        "is_healthy": healthy,
        "metadata": metadata,
    }


def _host(view: PeerView) -> str:
    """The node's address as this gateway reaches it, else the first that the node names."""
    for address in ([view.link.remote_address] if view.link else []) + view.record.addresses:
        if match := re.match(r"/ip[46]/([^/]+)/", address):
            return match[1]
    return "127.0.0.1"


def _now() -> str:
    return datetime.now(UTC).isoformat()
