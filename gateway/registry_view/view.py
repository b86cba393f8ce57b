"""The older registry's view: the mesh, and the foreign services of this gateway, as one list of services (contract, "Shapes").

1. It is a projection: a node that is gone from the mesh is gone from the list.
2. A node appears twice: `X` is its supervisor at P+1, `X-server` its OpenAI port at P; one with several backends twice for each
   of them, as `X-ID` and `X-ID-server`. Another gateway that serves models appears as `X-server`; our own foreign services appear
   under the names they registered.
3. A foreign service keeps its name, for its heartbeats. Of mesh peers with one name the one with the later peer id is shown as
   `name@<last 8 of the peer id>`, and so is one whose name a foreign service has.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from gateway.registry_view import clock
from mesh.errors import Conflict, NotFound

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.dispatch import Dispatch
    from gateway.registry_view.foreign import ForeignServices
    from gateway.registry_view.service import ForeignService
    from mesh.messages.record import ModelEntry
    from mesh.registry import PeerView

_UNIT = "service-"
Service = dict[str, Any]
Json = dict[str, Any]


class View:
    """The list, as it is at the moment of asking."""

    def __init__(self, dispatch: Dispatch, foreign: ForeignServices) -> None:
        self._dispatch = dispatch
        self._foreign = foreign
        self._started = trio.current_time()

    def all(self) -> list[Service]:
        """Every service, sorted by name."""
        services = [foreign_service(one) for one in self._foreign.services.values()]
        for name, view in self._named():
            services += _services_of(view, name)
        return sorted(services, key=lambda service: str(service["name"]))

    def get(self, name: str) -> Service:
        """The service of that name. Raises NotFound."""
        for service in self.all():
            if service["name"] == name:
                return service
        raise NotFound(f"no service is called {name[:128]!r}; GET /services lists them", code="service_not_found")

    def check_free(self, name: str) -> None:
        """Raises Conflict when a peer of the mesh has the name: what it is, it says itself."""
        if name not in self._foreign.services and any(service["name"] == name for service in self.all()):
            raise Conflict(f"{name!r} is a peer of the mesh, which speaks for itself; choose another name", code="mesh_service")

    def stats(self) -> Json:
        """The body of `GET /stats`."""
        services = self.all()
        healthy = sum(service["is_healthy"] for service in services)
        rows = [_foreign_row(one) for one in self._foreign.services.values() if one.registration.routable]
        rows += [self._row(view, shown, unit) for name, view in self._named() for shown, unit in _units(view, name)]
        return {
            "total_services": len(services),
            "healthy_services": healthy,
            "unhealthy_services": len(services) - healthy,
            "status_distribution": dict(Counter(service["status"] for service in services)),
            "host_distribution": dict(Counter(service["host"] for service in services)),
            "uptime": trio.current_time() - self._started,
            "timestamp": clock.now(),
            "persistence": self._foreign.problem or "ok",
            "services": sorted(rows, key=lambda row: str(row["name"])),
        }

    def _named(self) -> list[tuple[str, PeerView]]:
        """The peers that serve models, ourselves aside, with the names they are shown under."""
        taken, named = set(self._foreign.services), []
        own = self._dispatch.router.registry.own
        views = [view for view in self._dispatch.router.registry.nodes() if view.peer_id != own]
        for view in sorted(views, key=lambda view: view.peer_id):
            name = view.record.name
            if taken & {name, f"{name}-server"}:
                name = f"{name}@{view.peer_id[-8:]}"
            taken |= {name, f"{name}-server"}
            named.append((name, view))
        return named

    def _row(self, view: PeerView, name: str, unit: str) -> Json:
        service = _server(view, name, unit)
        models = (entry.id for entry in _of(unit, view.record.models))
        seen = self._dispatch.router.observations.known(view.peer_id, models)
        succeeded = sum(one.succeeded for one in seen)
        supervisor = view.record.ports.get(_port("supervisor", unit))
        return _row(
            service,
            babysitter_url=_url(service["host"], supervisor) if supervisor else None,
            requests=sum(one.requests for one in seen),
            errors=sum(one.failed for one in seen),
            seconds=sum(one.total_latency for one in seen) / succeeded if succeeded else 0.0,
            weight=service["metadata"]["weight"],
        )


def _row(service: Service, *, babysitter_url: str | None, requests: int, errors: int, seconds: float, weight: float) -> Json:
    """One line of the older router's statistics; `response_time` in seconds."""
    return {
        **{key: service[key] for key in ("name", "host", "port", "url", "metadata")},
        "babysitter_url": babysitter_url,
        "healthy": service["is_healthy"],
        "request_count": requests,
        "error_count": errors,
        "response_time": seconds,
        "weight": weight,
        "models": service["metadata"].get("models", []),
    }


def foreign_service(service: ForeignService) -> Service:
    """A registered service as the list shows it."""
    registration = service.registration
    metadata = dict(registration.metadata)
    if service.models and registration.routable:
        metadata |= {
            "type": "openai-api",
            "models": [model.id for model in service.models],
            "models_list": [{"id": model.id, "object": "model", "created": model.created} for model in service.models],
        }
    return {
        **msgspec.structs.asdict(registration),
        "timestamp": clock.now(),
        "last_heartbeat": service.last_heartbeat,
        "health_status": service.health,
        "is_healthy": service.is_healthy,
        "metadata": metadata,
    }


def _foreign_row(service: ForeignService) -> Json:
    return _row(
        foreign_service(service),
        babysitter_url=service.registration.babysitter_url,
        requests=service.request_count,
        errors=service.error_count,
        seconds=service.response_time,
        weight=service.registration.weight,
    )


def _services_of(view: PeerView, name: str) -> list[Service]:
    found: list[Service] = []
    for shown, unit in _units(view, name):
        if view.record.role == "node":
            found.append(_supervisor(view, shown, unit))
        found.append(_server(view, shown, unit))
    return found


def _units(view: PeerView, name: str) -> list[tuple[str, str]]:
    """The backends of a node that runs several, each with the name that it is shown under; else the peer itself."""
    units = [port.removeprefix(_UNIT) for port in view.record.ports if port.startswith(_UNIT)]
    return [(f"{name}-{unit}", unit) for unit in units] or [(name, "")]


def _of(unit: str, models: Iterable[ModelEntry]) -> list[ModelEntry]:
    return [entry for entry in models if not unit or entry.unit == unit]


def _port(name: str, unit: str) -> str:
    return f"{name}-{unit}" if unit else name


def _supervisor(view: PeerView, name: str, unit: str) -> Service:
    kinds = sorted({entry.backend for entry in _of(unit, view.record.models)})
    metadata = {"type": ",".join(kinds), "babysitter": "enhanced", "peer_id": view.record.peer_id}
    return _service(view, name, "supervisor", unit, metadata)


def _server(view: PeerView, name: str, unit: str) -> Service:
    models = _of(unit, view.record.models)
    metadata = {
        "type": "openai-api",
        "parent_service": name,
        "models": [entry.id for entry in models],
        "models_list": [msgspec.to_builtins(entry) for entry in models],
        "weight": max((entry.weight for entry in models), default=1.0),
        "peer_id": view.record.peer_id,
    }
    return _service(view, f"{name}-server", "service", unit, metadata)


def _service(view: PeerView, name: str, port_name: str, unit: str, metadata: dict[str, Any]) -> Service:
    host, port = _host(view), view.record.ports.get(_port(port_name, unit), 0)
    healthy = any(entry.state in ("ready", "asleep") for entry in _of(unit, view.models))
    return {
        "name": name,
        "host": host,
        "port": port,
        "hostname": view.record.name,
        "url": _url(host, port),
        "status": "running" if healthy else "unhealthy",
        "timestamp": clock.now(),
        "last_heartbeat": clock.now(),  # a peer is listed only while its link answers every second
        "health_status": "healthy" if healthy else "unhealthy",
        "is_healthy": healthy,
        "metadata": metadata,
    }


def _host(view: PeerView) -> str:
    """The peer's address as this gateway reaches it, else the first that the peer names."""
    for address in ([view.link.remote_address] if view.link else []) + view.record.addresses:
        if match := re.match(r"/ip[46]/([^/]+)/", address):
            return match[1]
    return "127.0.0.1"


def _url(host: str, port: int) -> str:
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
