"""What is known of the candidates for one request, frozen: all that a policy ever sees.

1. A snapshot holds values, never live objects: the same snapshot always gives the same order.
2. Times are in seconds. `None` means "not known yet"; it is never zero and never infinity.
3. Only nodes that can take the request now, or after waking, are candidates. A node that failed lately stays one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.messages.link import ModelLoad

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.observations import Observations
    from mesh.identity import PeerId
    from mesh.messages.inference import InferenceRequest
    from mesh.messages.record import ModelEntry, ModelState
    from mesh.registry import PeerView

ROUTABLE: frozenset[ModelState] = frozenset(("ready", "asleep"))
DEFAULT_OUTPUT_TOKENS = 128
"""What a request without `max_tokens`, or with a generous one, is expected to generate."""
BYTES_PER_TOKEN = 4
"""A hint: a gateway has no tokenizer."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
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
    idle: float | None = None
    """Since this gateway last tried it; None: never tried."""
    suspect: bool = False
    """It failed a moment ago; used only after the others."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """How much work the request is, as far as a gateway can tell."""

    prompt_tokens: int = 0
    output_tokens: int = DEFAULT_OUTPUT_TOKENS


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The candidates, the request's size, and everything else that an order may depend on."""

    model: str
    candidates: tuple[Candidate, ...]
    demand: Demand = Demand()
    turn: int = 0
    """How many requests for this model were routed before this one."""
    draws: tuple[float, float, float] = (0.0, 0.0, 0.5)
    """Random numbers in [0, 1): two for picking, one for exploring."""


def demand_of(request: InferenceRequest) -> Demand:
    """Size a request by the length of its texts."""
    size = _text_bytes(request) // BYTES_PER_TOKEN
    limit = request.max_tokens or DEFAULT_OUTPUT_TOKENS
    return Demand(prompt_tokens=size, output_tokens=min(limit, DEFAULT_OUTPUT_TOKENS))


def _text_bytes(request: InferenceRequest) -> int:
    if isinstance(request.prompt, list):
        return len(request.prompt) * BYTES_PER_TOKEN
    texts = [request.prompt or "", *(request.inputs or [])]
    texts += [str(message.get("content") or "") for message in request.messages or []]
    return sum(map(len, texts))


def entry_of(view: PeerView, model: str) -> ModelEntry | None:
    """What the node says of the model with this id."""
    return next((entry for entry in view.record.models if entry.id == model), None)


def state_of(view: PeerView, entry: ModelEntry) -> ModelState:
    """The model's state there: the heartbeat's word, else the record's."""
    load = view.link.load.get(entry.id) if view.link is not None else None
    return load.state if load is not None else entry.state


def usable(view: PeerView, model: str) -> bool:
    """True when a request for the model may be sent there now."""
    entry = entry_of(view, model)
    return entry is not None and view.live and state_of(view, entry) in ROUTABLE


def candidates_of(views: Iterable[PeerView], model: str, observations: Observations, *, now: float) -> tuple[Candidate, ...]:
    """The usable nodes among `views`, sorted by peer id so that the order never depends on who connected first."""
    found = (_candidate(view, model, observations, now) for view in views if usable(view, model))
    return tuple(sorted(found, key=lambda candidate: candidate.peer_id))


def _candidate(view: PeerView, model: str, observations: Observations, now: float) -> Candidate:
    entry, link = entry_of(view, model), view.link
    assert entry is not None
    assert link is not None
    load = link.load.get(model) or ModelLoad(state=entry.state)
    seen = observations.of(link.peer_id, model)
    return Candidate(
        peer_id=link.peer_id,
        name=view.record.name,
        state=load.state,
        rtt=link.rtt,
        busy=seen.busy(load),
        in_flight=seen.in_flight,
        slots=max(1, load.slots),
        prefill_rate=load.prefill_rate,
        decode_rate=load.decode_rate,
        wake=entry.wake_seconds if load.state == "asleep" else 0.0,
        weight=entry.weight,
        ttft=seen.ttft,
        itl=seen.itl,
        idle=None if seen.tried_at is None else now - seen.tried_at,
        suspect=now < seen.suspect_until,
    )
