"""The policies, by name: each orders the candidates of a snapshot, best first.

1. A policy is a pure function: no clock, no I/O, no state. Counters and random numbers come in the snapshot.
2. It returns every candidate once: the first is tried first, the rest are the order of the retries.
3. A node that failed lately comes after all others, but is never left out: the last candidate is never banned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from gateway.routing.snapshot import Candidate, Demand, Snapshot

GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, fill the interval evenly from any start on: a weighted turn without bursts."""
NEAR_BEST_FACTOR = 1.2
NEAR_BEST_SLACK = 0.010
"""Seconds. Predictions closer than this are noise; choosing among them at random keeps gateways from herding."""
OPTIMISM = 0.5
"""A node never tried is expected to take this share of the best node's time, so that it is tried."""
EXPLORE_AFTER = 30.0
EXPLORE_SHARE = 0.05
"""A node not tried for that many seconds may be slow no longer: this share of the requests looks."""
ASSUMED_RTT = 0.02
ASSUMED_ITL = 0.02
"""Seconds; used only while nothing is known of any candidate."""


@dataclass(frozen=True)
class Ranked:
    """One candidate in its place. `score` is what the policy minimised; `parts` is what it was made of."""

    candidate: Candidate
    score: float
    parts: dict[str, float] = field(default_factory=dict)


Policy = Callable[["Snapshot"], list[Ranked]]


def round_robin(snapshot: Snapshot) -> list[Ranked]:
    """Each node in turn; the turns of one model do not depend on the traffic of another."""
    return _in_groups(_rotated(snapshot.candidates, snapshot.turn))


def weighted_round_robin(snapshot: Snapshot) -> list[Ranked]:
    """Each node as often as its weight says, evenly spread over the turns."""
    weights = [max(candidate.weight, 0.0) for candidate in snapshot.candidates]
    point = (snapshot.turn * GOLDEN) % 1.0 * sum(weights)
    ends = list(itertools.accumulate(weights))
    # Rounding may leave the point at the very end; then, and when all weights are 0, the last node has its turn.
    first = next((place for place, end in enumerate(ends) if point < end), len(ends) - 1)
    return _in_groups(_rotated(snapshot.candidates, first))


def least_loaded(snapshot: Snapshot) -> list[Ranked]:
    """The smallest share of taken slots first; equals take turns."""
    turned = _rotated(snapshot.candidates, snapshot.turn)
    scored = [Ranked(item.candidate, item.candidate.busy / item.candidate.slots) for item in turned]
    return _in_groups(sorted(scored, key=_score))


def predicted_latency(snapshot: Snapshot) -> list[Ranked]:
    """The node that will finish first: round trip, queue, prefill, decode and waking, as reported and as observed."""
    if not snapshot.candidates:
        return []
    best_itl = min(filter(None, map(_known_itl, snapshot.candidates)), default=ASSUMED_ITL)
    scored = [_predict(candidate, snapshot.demand, best_itl) for candidate in snapshot.candidates]
    ordered = _pick_near_best(sorted(_optimistic(scored), key=_score), snapshot.draws)
    return _suspects_last(_explore(ordered, snapshot.draws[2]))


def _predict(candidate: Candidate, demand: Demand, best_itl: float) -> Ranked:
    rtt = ASSUMED_RTT if candidate.rtt is None else candidate.rtt
    # The more of its slots are taken, the longer each engine step takes.
    itl = (_known_itl(candidate) or best_itl) * (1 + min(1.0, candidate.busy / candidate.slots))
    decode = itl * demand.output_tokens
    prefill = demand.prompt_tokens / candidate.prefill_rate if candidate.prefill_rate > 0 else 0.0
    if candidate.ttft is not None:
        prefill = max(prefill, candidate.ttft - rtt)
    ahead = max(0, candidate.busy + 1 - candidate.slots)
    wait = ahead / candidate.slots * (prefill + decode)
    parts = {"rtt": rtt, "wait": wait, "prefill": prefill, "decode": decode, "wake": candidate.wake}
    return Ranked(candidate, sum(parts.values()), parts)


def _known_itl(candidate: Candidate) -> float | None:
    if candidate.itl is not None:
        return candidate.itl
    if candidate.decode_rate > 0:
        return 1 / candidate.decode_rate
    return None


def _optimistic(scored: list[Ranked]) -> list[Ranked]:
    """A node that was never tried counts as good, unless it is full or must wake first."""
    best = min(item.score for item in scored)
    return [
        Ranked(item.candidate, min(item.score, best * OPTIMISM), item.parts) if _untested(item.candidate) else item
        for item in scored
    ]


def _untested(candidate: Candidate) -> bool:
    return candidate.idle is None and candidate.busy < candidate.slots and candidate.state == "ready"


def _pick_near_best(ordered: list[Ranked], draws: tuple[float, float, float]) -> list[Ranked]:
    limit = ordered[0].score * NEAR_BEST_FACTOR + NEAR_BEST_SLACK
    near = [item for item in ordered if item.score <= limit and not item.candidate.suspect] or ordered[:1]
    picks = (near[int(draws[0] * len(near))], near[int(draws[1] * len(near))])
    return _to_front(ordered, min(picks, key=lambda item: (item.candidate.busy / item.candidate.slots, item.score)))


def _explore(ordered: list[Ranked], draw: float) -> list[Ranked]:
    stale = [item for item in ordered if (item.candidate.idle or 0.0) > EXPLORE_AFTER and item.candidate.state == "ready"]
    if draw >= EXPLORE_SHARE or not stale:
        return ordered
    return _to_front(ordered, max(stale, key=lambda item: item.candidate.idle or 0.0))


def _to_front(ordered: list[Ranked], chosen: Ranked) -> list[Ranked]:
    return [chosen, *(item for item in ordered if item is not chosen)]


def _rotated(candidates: tuple[Candidate, ...], turn: int) -> list[Ranked]:
    count = len(candidates)
    return [Ranked(candidates[(turn + place) % count], float(place)) for place in range(count)]


def _in_groups(ranked: list[Ranked]) -> list[Ranked]:
    """Awake before asleep, for the policies whose score knows nothing of waking."""
    return _suspects_last(sorted(ranked, key=lambda item: item.candidate.state != "ready"))


def _suspects_last(ranked: list[Ranked]) -> list[Ranked]:
    return sorted(ranked, key=lambda item: item.candidate.suspect)


def _score(ranked: Ranked) -> float:
    return ranked.score


DEFAULT_POLICY = "predicted_latency"
POLICIES: dict[str, Policy] = {
    policy.__name__: policy for policy in (predicted_latency, round_robin, weighted_round_robin, least_loaded)
}


def policy_named(name: str) -> Policy:
    """The policy of that name. Raises Misconfigured, which lists the names."""
    try:
        return POLICIES[name]
    except KeyError:
        raise Misconfigured(f"unknown strategy {name!r}; choose one of {', '.join(sorted(POLICIES))}") from None
