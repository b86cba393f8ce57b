"""The policies, by name: each orders the candidates of a snapshot, best first.

1. A policy is a pure function: no clock, no I/O, no state. Counters and random numbers come in the snapshot.
2. It returns every candidate once: the first is tried first, the rest are the order of the retries.
3. A node that failed lately comes after all others, but is never left out: the last candidate is never banned.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING

from gateway.routing.affinity import favour, keeper
from gateway.routing.prediction import Ranked, predict

if TYPE_CHECKING:
    from gateway.routing.snapshot import Candidate, Snapshot

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
    return favour(snapshot, _in_groups(sorted(scored, key=_score)))


def best_performance(snapshot: Snapshot) -> list[Ranked]:
    """The lowest mean latency of what it answered so far, among those with a free slot; one never tried counts as the best."""
    turned = _rotated(snapshot.candidates, snapshot.turn)
    scored = [Ranked(item.candidate, item.candidate.latency or 0.0) for item in turned]
    ordered = sorted(scored, key=lambda item: (item.candidate.busy // item.candidate.slots, item.score))
    return favour(snapshot, _in_groups(ordered))


def predicted_latency(snapshot: Snapshot) -> list[Ranked]:
    """The node that will finish first: round trip, queue, prefill, decode and waking, as reported and as observed."""
    ordered = _pick_near_best(sorted(_optimistic(predict(snapshot)), key=_score), snapshot.draws)
    return favour(snapshot, _suspects_last(_explore(ordered, snapshot.draws[2])))


def prefix_affinity(snapshot: Snapshot) -> list[Ranked]:
    """The node that has most of the prompt in its cache, unless it would finish much later than the best one.

    A prompt that nobody has yet goes where its beginning belongs, the same for all gateways, or one too short for that where its
    client belongs; one with an affinity of its own goes where that belongs.
    """
    ordered = predicted_latency(snapshot)
    if snapshot.affinity:
        return ordered
    most = max((item.candidate.cached for item in ordered if not item.candidate.suspect), default=0)
    if most:
        holders = [item for item in ordered if item.candidate.cached == most]
        return favour(snapshot, ordered, min(holders, key=_score).candidate)
    belongs = snapshot.prefix or snapshot.client
    return favour(snapshot, ordered, keeper(belongs, snapshot.candidates)) if belongs else ordered


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
    policy.__name__: policy
    for policy in (predicted_latency, prefix_affinity, round_robin, weighted_round_robin, least_loaded, best_performance)
}
