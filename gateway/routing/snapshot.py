"""What is known of the candidates for one request, frozen: all that a policy ever sees.

1. A snapshot holds values, never live objects: the same snapshot always gives the same order.
2. Times are in seconds. `None` means "not known yet"; it is never zero and never infinity.
3. Only nodes that can take the request now, or after waking, are candidates. A node that failed lately stays one.
4. What a node reports is bounded before anybody computes with it: a node that lies wins no more than a good one would.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import msgspec

from mesh.health import ASKABLE
from mesh.identity import PeerId
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelState

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from gateway.observations import Observation, Observations
    from mesh.messages.record import ModelEntry
    from mesh.registry import PeerView

ROUTABLE: frozenset[ModelState] = ASKABLE
MAX_REQUESTS = 100_000
MAX_RATE = 1_000_000.0
MAX_WEIGHT = 1_000.0
MAX_WAKE = 3_600.0
"""What a report is bounded to: requests, tokens per second, shares, seconds."""


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """One node that could take the request."""

    peer_id: PeerId
    name: str = ""
    state: ModelState = "ready"
    rtt: float | None = None
    busy: int = 0
    """Requests that run or wait there, everybody's: the last report, corrected by what this gateway did since."""
    in_flight: int = 0
    """Those of them that this gateway sent."""
    slots: int = 1
    prefill_rate: float = 0.0
    decode_rate: float = 0.0
    """Tokens per second: prefill of the whole engine, decode of one request. 0 = not measured yet."""
    wake: float = 0.0
    weight: float = 1.0
    ttft: float | None = None
    itl: float | None = None
    latency: float | None = None
    """Of the requests that succeeded there, the mean from sending to the end."""
    idle: float | None = None
    """Since this gateway last tried it; None: never tried."""
    cached: int = 0
    """Tokens at the start of this prompt that it has probably computed before."""
    suspect: bool = False
    """It failed a moment ago; used only after the others."""


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """The candidates, the request's size, and everything else that an order may depend on."""

    model: str
    candidates: tuple[Candidate, ...]
    prompt_tokens: int = 0
    output_tokens: int = 128
    affinity: bytes = b""
    """Requests of one conversation or user have the same; empty: any node is as good."""
    prefix: bytes = b""
    """Requests that begin with the same text have the same; empty: there is no text."""
    client: bytes = b""
    """Requests from the same address have the same."""
    turn: int = 0
    """How many requests for this model were routed before this one."""
    draws: tuple[float, float, float] = (0.0, 0.0, 0.5)
    """Random numbers in [0, 1): two for picking, one for exploring."""


def entry_of(view: PeerView, model: str) -> ModelEntry | None:
    """What the node says of the model with this id."""
    return next((entry for entry in view.record.models if entry.id == model), None)


def state_of(view: PeerView, entry: ModelEntry) -> ModelState:
    """The model's state there: the heartbeat's word, else the record's."""
    load = view.link.load.get(entry.id) if view.link is not None else None
    return load.state if load is not None else entry.state


def candidates_of(
    views: Iterable[PeerView], model: str, observations: Observations, *, now: float, cached: Mapping[PeerId, int] | None = None
) -> tuple[Candidate, ...]:
    """These nodes as candidates, sorted by peer id so that the order never depends on who connected first."""
    cached = cached or {}
    found = (_candidate(view, model, observations.of(view.peer_id, model), now, cached) for view in views)
    return tuple(sorted(found, key=lambda candidate: candidate.peer_id))


def _candidate(view: PeerView, model: str, seen: Observation, now: float, cached: Mapping[PeerId, int]) -> Candidate:
    entry, link = entry_of(view, model), view.link
    assert entry is not None
    assert link is not None
    load = link.load.get(model) or ModelLoad(state=entry.state)
    return Candidate(
        peer_id=link.peer_id,
        name=view.record.name,
        state=load.state,
        rtt=link.rtt,
        busy=min(seen.busy(load), MAX_REQUESTS),
        in_flight=seen.in_flight,
        slots=min(max(1, load.slots), MAX_REQUESTS),
        prefill_rate=_bounded(load.prefill_rate, MAX_RATE),
        decode_rate=_bounded(load.decode_rate, MAX_RATE),
        wake=_bounded(entry.wake_seconds, MAX_WAKE) if load.state == "asleep" else 0.0,
        weight=_bounded(entry.weight, MAX_WEIGHT),
        ttft=seen.ttft,
        itl=seen.itl,
        latency=seen.latency,
        idle=None if seen.tried_at is None else now - seen.tried_at,
        cached=cached.get(link.peer_id, 0),
        suspect=seen.suspect(now),
    )


def _bounded(value: float, most: float) -> float:
    """A reported number as one that can be computed with; nonsense is "not known"."""
    return min(value, most) if value > 0 and math.isfinite(value) else 0.0
