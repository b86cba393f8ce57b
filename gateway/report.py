"""What the gateway says about the mesh and itself, as JSON-ready values: status, peers, queues, routes.

1. Everything is read from the registry, the links and the observations at the moment of asking; nothing is cached.
2. Levels are those of `mesh.health`.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import trio

from gateway.routing.demand import Demand
from gateway.routing.filters import sieve
from gateway.routing.plugins import policy_failures
from gateway.routing.snapshot import entry_of, state_of
from mesh.health import USABLE, Level, level
from mesh.loopback import Loopback
from mesh.messages.link import ModelLoad
from mesh.status import Counted, backend_type, capabilities, metrics, task_names
from mesh.status import report as status_report
from mesh.status import timestamp as timestamp

if TYPE_CHECKING:
    from gateway.dispatch import Dispatch, Totals
    from gateway.observations import Observation
    from gateway.routing.filters import PassedOver
    from gateway.routing.prediction import Ranked
    from mesh.messages.record import ModelEntry
    from mesh.registry import PeerView

Json = dict[str, Any]

MAX_SHOWN = 1_000
"""Peers that an answer lists: a mesh may have many times as many, and nobody reads them."""


def node_views(dispatch: Dispatch) -> list[PeerView]:
    """Who serves models, by name: nodes, and gateways with foreign services. At most `MAX_SHOWN`, the linked before others."""
    registry = dispatch.router.registry
    views = registry.newest((view for view in registry.peers.values() if view.serves), MAX_SHOWN)
    return sorted(views, key=lambda view: (view.record.name, view.record.peer_id))


def level_of(view: PeerView, dispatch: Dispatch) -> Level:
    """How well the node does."""
    suspect = any(trio.current_time() < seen.suspect_until for seen in _seen(view, dispatch))
    return level((state_of(view, entry) for entry in view.record.models), reachable=view.live, failing=suspect)


def servable(dispatch: Dispatch) -> bool:
    """True when some model can be served now."""
    return any(level_of(view, dispatch) in USABLE for view in dispatch.router.registry.nodes())


def health(version: str, *, healthy: int, total: int) -> Json:
    """The body of `GET /health`: the gateway lives, and how many of the services in its list do."""
    return {
        "status": "healthy",
        "mode": "api_server",
        "version": version,
        "router": True,
        "healthy_services": healthy,
        "total_services": total,
        "timestamp": timestamp(),
    }


def readiness(dispatch: Dispatch) -> Json:
    """The body of `GET /ready`."""
    ready = servable(dispatch)
    return {"ready": ready, "engine_connected": ready, "status": "ready" if ready else "no model can be served now"}


def status(dispatch: Dispatch) -> Json:
    """The body of `GET /status`: one backend per node."""
    totals = dispatch.totals
    backends = [backend(view, dispatch) for view in node_views(dispatch)]
    common = status_report(backends, requests=totals.requests, successful=totals.succeeded, failed=totals.failed)
    return {**common, **dispatching(dispatch)}


def dispatching(dispatch: Dispatch) -> Json:
    """How dispatch does, beside the totals."""
    hedging = dispatch.hedging
    return {
        "requests": dict(Counter(delivery.course.state for delivery in dispatch.under_way)),
        "retries_refused": dispatch.retries.refused + dispatch.busy_retries.refused,
        "hedged": {"requests": hedging.hedged, "won": hedging.won, "refused": hedging.budget.refused},
        "strategy": {"name": dispatch.router.strategy, "failures": policy_failures(dispatch.router.policy)},
    }


def backend(view: PeerView, dispatch: Dispatch) -> Json:
    """One node as a backend of this gateway."""
    return {
        "id": view.record.peer_id,
        "name": view.record.name,
        "type": "API" if isinstance(view.link, Loopback) else "P2P",
        "status": level_of(view, dispatch),
        "endpoint": next(iter(view.record.addresses), ""),
        "tasks": task_names(task for entry in view.record.models for task in (entry.capabilities.tasks or [entry.task])),
        "protocols": ["openai"] if isinstance(view.link, Loopback) else ["libp2p"],
        "models": [
            {**capabilities(entry), "state": state_of(view, entry), "type": backend_type(entry.backend)}
            for entry in view.record.models
        ],
        "metrics": _metrics(view, _seen(view, dispatch)),
        "faults": dict(sum((seen.faults for seen in _seen(view, dispatch)), Counter[str]())),
        "breakers": _breakers(view, dispatch),
    }


def _breakers(view: PeerView, dispatch: Dispatch) -> dict[str, str]:
    """By model: those that are not closed."""
    now, observations = trio.current_time(), dispatch.router.observations
    states = {
        entry.id: seen.breaker(now) for entry in view.record.models for seen in observations.known(view.peer_id, (entry.id,))
    }
    return {model: state for model, state in states.items() if state != "closed"}


def _seen(view: PeerView, dispatch: Dispatch) -> list[Observation]:
    return dispatch.router.observations.known(view.peer_id, (entry.id for entry in view.record.models))


def _metrics(view: PeerView, seen: list[Observation]) -> Json:
    loads = [_load(view, entry) for entry in view.record.models]
    return metrics(
        Counted(
            requests=sum(one.requests for one in seen),
            successful=sum(one.succeeded for one in seen),
            failed=sum(one.failed for one in seen),
            latency=sum(one.total_latency for one in seen),
            queue=sum(load.waiting for load in loads),
            active=sum(one.in_flight for one in seen),
            models_loaded=sum(state_of(view, entry) == "ready" for entry in view.record.models),
            uptime=max((load.uptime for load in loads), default=0) or None,
        )
    )


def _load(view: PeerView, entry: ModelEntry) -> ModelLoad:
    found = view.link.load.get(entry.id) if view.link is not None else None
    return found or ModelLoad(state=entry.state)


def peers(dispatch: Dispatch) -> list[Json]:
    """The peers in `GET /v1/mesh/peers`, by role and name: at most `MAX_SHOWN`, the linked ones and those heard of last."""
    registry = dispatch.router.registry
    views = registry.newest(registry.peers.values(), MAX_SHOWN)
    return [peer(view) for view in sorted(views, key=lambda view: (view.record.role, view.record.name, view.record.peer_id))]


def peer(view: PeerView) -> Json:
    """One peer of the mesh."""
    link = view.link
    return {
        "peer_id": view.record.peer_id,
        "name": view.record.name,
        "role": view.record.role,
        "version": view.record.version,
        "addresses": view.record.addresses,
        "linked": view.live,
        "leaving": link is not None and link.leaving,
        "carrier": link.carrier if link is not None else None,
        "via": link.via if link is not None else None,
        "relays": view.relay,
        "rtt_ms": _milliseconds(link.rtt) if link is not None else None,
        "models": [_model(view, entry) for entry in view.record.models],
        "hardware": view.record.hardware,
        "ports": view.record.ports,
    }


def _model(view: PeerView, entry: ModelEntry) -> Json:
    load = _load(view, entry)
    return {
        "id": entry.id,
        "aliases": entry.aliases,
        "state": load.state,
        "running": load.running,
        "waiting": load.waiting,
        "slots": load.slots,
        "context_length": entry.context_length,
        "backend": entry.backend,
    }


def queues(dispatch: Dispatch) -> list[Json]:
    """What runs and waits for each model over all linked nodes, sorted by model id."""
    found: dict[str, Json] = {}
    for view in dispatch.router.registry.nodes():
        for entry in view.record.models:
            load = _load(view, entry)
            row = found.setdefault(entry.id, {"model": entry.id, "running": 0, "waiting": 0, "slots": 0, "nodes": 0})
            row["running"] += load.running
            row["waiting"] += load.waiting
            row["slots"] += load.slots
            row["nodes"] += 1
    return [found[model] for model in sorted(found)]


def sample(totals: Totals) -> Json:
    """This gateway's counters."""
    return {
        "requests": totals.requests,
        "successful": totals.succeeded,
        "failed": totals.failed,
        "cancelled": totals.cancelled,
        "retried": totals.retried,
        "resumed": totals.resumed,
        "stalled": totals.stalled,
        "streams_picked_up": totals.picked_up,
        "streams_not_found": totals.not_found,
        "in_flight": totals.in_flight,
    }


def route(dispatch: Dispatch, name: str, demand: Demand | None = None) -> Json:
    """The body of `GET /v1/route`: where a request for the model would go now, and why. Raises NotFound, Conflict."""
    model, demand = dispatch.models.resolve(name), demand or Demand()
    ranked, passed = dispatch.router.explain(model, demand=demand)
    considered = {item.candidate.peer_id for item in ranked} | {one.view.peer_id for one in passed}
    others = [view for view in node_views(dispatch) if view.peer_id not in considered]
    return {
        "model": model,
        "strategy": dispatch.router.strategy,
        "candidates": [_ranked(place, item) for place, item in enumerate(ranked, start=1)],
        "not_considered": [_passed_over(one, model) for one in [*passed, *sieve(others, model, demand)[1]]],
        "timestamp": timestamp(),
    }


def _ranked(place: int, item: Ranked) -> Json:
    candidate = item.candidate
    return {
        "rank": place,
        "peer_id": candidate.peer_id,
        "name": candidate.name,
        "state": candidate.state,
        "score": round(item.score, 6),
        "parts": {name: round(seconds, 6) for name, seconds in item.parts.items()},
        "cached_tokens": candidate.cached,
        "busy": candidate.busy,
        "in_flight": candidate.in_flight,
        "slots": candidate.slots,
        "rtt_ms": _milliseconds(candidate.rtt),
        "ttft_ms": _milliseconds(candidate.ttft),
        "itl_ms": _milliseconds(candidate.itl),
        "weight": candidate.weight,
        "tried": candidate.idle is not None,
        "suspect": candidate.suspect,
    }


def _passed_over(one: PassedOver, model: str) -> Json:
    entry = entry_of(one.view, model)
    assert entry is not None
    state = state_of(one.view, entry)
    return {"peer_id": one.view.record.peer_id, "name": one.view.record.name, "state": state, "reason": one.reason}


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 3)
