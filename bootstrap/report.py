"""`mesh status`, `mesh models`, `mesh peers`, `mesh route`: what a gateway sees, for people or as JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from bootstrap.tables import show
from mesh.logs import printable

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bootstrap.remote import Gateway, Json


_SCORES = {"least_loaded": "requests per slot"} | dict.fromkeys(("predicted_latency", "prefix_affinity"), "expected time")
_SCORES |= {"best_performance": "mean time"}
"""What the score of a strategy is, where it is more than a place in the order."""


async def status(gateway: Gateway, *, as_json: bool) -> None:
    """How the gateway and the mesh behind it do."""
    health = await gateway.get("/health")
    peers = await _peers(gateway)
    if as_json:
        _print_json({"gateway": gateway.url, "health": health, "peers": peers})
        return
    version = printable(str(health.get("version", "?")))
    print(f"gateway {gateway.url}: {printable(str(health.get('status', '?')))}, version {version}")
    nodes = [peer for peer in peers if peer.get("role") == "node"]
    print(f"nodes: {sum(bool(peer.get('linked')) for peer in nodes)} linked of {len(nodes)} known\n")
    _show_peers(peers)
    _advise(nodes)


async def peers(gateway: Gateway, *, as_json: bool) -> None:
    """Every peer that the gateway knows."""
    found = await _peers(gateway)
    if as_json:
        _print_json({"peers": found})
    else:
        _show_peers(found)


async def models(gateway: Gateway, *, as_json: bool) -> None:
    """The models of the mesh, with the nodes that serve each."""
    served = await gateway.models()
    rows = list(_model_rows(served, await _peers(gateway)))
    if as_json:
        _print_json({"models": [dict(zip(("id", "nodes", "ready", "running", "waiting"), row, strict=True)) for row in rows]})
    elif rows:
        show(("model", "nodes", "ready", "running", "waiting"), [[str(cell) for cell in row] for row in rows])
    else:
        print("no model is served; start a node with `mesh-node`")


async def route(gateway: Gateway, model: str, *, as_json: bool) -> None:
    """Which node the next request for a model would go to, and why."""
    answer = await gateway.get("/v1/route", model=model)
    if as_json:
        _print_json(answer)
        return
    strategy = printable(str(answer.get("strategy", "?")))
    print(f"{printable(str(answer.get('model', model)))} by {strategy}")
    show(
        ("rank", "node", "state", _SCORES.get(strategy, "score"), "why"),
        [_candidate(found, strategy) for found in _objects(answer.get("candidates"))]
        + [["-", _name(found), _text(found.get("state")), "", _text(found.get("reason"))] for found in _passed_over(answer)],
    )


async def _peers(gateway: Gateway) -> list[Json]:
    return _objects((await gateway.get("/v1/mesh/peers")).get("peers"))


def _show_peers(peers: Sequence[Json]) -> None:
    if not peers:
        print("no other peer is known; start a node with `mesh-node`")
        return
    names = {peer.get("peer_id"): _name(peer) for peer in peers}
    show(
        ("name", "role", "link", "rtt", "models", "hardware", "peer id"),
        [_peer_row(peer, names) for peer in peers],
        ids=["peer id"],
    )


def _advise(nodes: Sequence[Json]) -> None:
    if not any(peer.get("linked") for peer in nodes):
        print("\nno node is linked, so no model can be served: start `mesh-node` here, or look at `mesh doctor`")


def _carrier(peer: Json, names: Mapping[Any, str]) -> str:
    if not peer.get("linked"):
        return "-"
    via = peer.get("via")
    return _text(peer.get("carrier") or "up") if via is None else f"relayed by {names.get(via) or _text(via)}"


def _peer_row(peer: Json, names: Mapping[Any, str]) -> list[str]:
    rtt = peer.get("rtt_ms")
    return [
        _name(peer),
        _text(peer.get("role")),
        _carrier(peer, names),
        f"{rtt:.1f} ms" if isinstance(rtt, int | float) else "-",
        ", ".join(_model(model) for model in _objects(peer.get("models"))) or "-",
        _hardware(peer.get("hardware")),
        _text(peer.get("peer_id")),
    ]


def _model(model: Json) -> str:
    busy = f"{model.get('running', 0)}+{model.get('waiting', 0)}/{model.get('slots', 0)}"
    return f"{_text(model.get('id'))} {_text(model.get('state'))} {busy}"


def _hardware(hardware: Any) -> str:
    if not isinstance(hardware, dict):
        return "-"
    name = _text(hardware.get("device_name") or hardware.get("device"))
    memory = hardware.get("memory_bytes")
    return f"{name}, {memory / 2**30:.0f} GiB" if isinstance(memory, int) and memory else name


def _model_rows(served: Sequence[Json], peers: Sequence[Json]) -> Iterator[tuple[str, int, int, int, int]]:
    for entry in served:
        copies = [
            model
            for peer in peers
            if peer.get("linked")
            for model in _objects(peer.get("models"))
            if model.get("id") == entry.get("id")
        ]
        ready = sum(copy.get("state") == "ready" for copy in copies)
        yield _text(entry.get("id")), len(copies), ready, _sum(copies, "running"), _sum(copies, "waiting")


def _candidate(found: Json, strategy: str) -> list[str]:
    parts = found.get("parts")
    why = ", ".join(f"{name} {_duration(value)}" for name, value in parts.items()) if isinstance(parts, dict) else ""
    score = (_duration if _SCORES.get(strategy, "").endswith("time") else _number)(found.get("score"))
    return [_text(found.get("rank")), _name(found), _text(found.get("state")), score, why]


def _passed_over(answer: Json) -> list[Json]:
    return _objects(answer.get("not_considered"))


def _name(peer: Json) -> str:
    return _text(peer.get("name") or peer.get("peer_id"))


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _duration(seconds: Any) -> str:
    """For people: milliseconds below a second."""
    if not isinstance(seconds, int | float):
        return _text(seconds)
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else _text(value)


def _sum(copies: Sequence[Json], key: str) -> int:
    return sum(value for copy in copies if isinstance(value := copy.get(key), int))


def _objects(value: Any) -> list[Json]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _print_json(value: Json) -> None:
    print(json.dumps(value, indent=2))
