"""How long a request would take at a node: the sum of what its heartbeats and our own observations say.

Pure: the same candidate and request always give the same prediction.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

from gateway.routing.snapshot import Candidate

if TYPE_CHECKING:
    from gateway.routing.snapshot import Snapshot

ASSUMED_RTT = 0.02
ASSUMED_ITL = 0.02
"""Seconds; used only while nothing is known of any candidate."""


class Ranked(msgspec.Struct, frozen=True):
    """One candidate in its place. `score` is what the policy minimised; `parts` is what it was made of."""

    candidate: Candidate
    score: float
    parts: dict[str, float] = {}


def predict(snapshot: Snapshot) -> list[Ranked]:
    """Seconds until each candidate would finish the request, and what they consist of; in the order of the snapshot."""
    best_itl = min(filter(None, map(_known_itl, snapshot.candidates)), default=ASSUMED_ITL)
    return [_predict(candidate, snapshot, best_itl) for candidate in snapshot.candidates]


def measured(candidate: Candidate) -> bool:
    """True when its speed is known, so that its prediction is more than a guess."""
    return _known_itl(candidate) is not None


def _predict(candidate: Candidate, snapshot: Snapshot, best_itl: float) -> Ranked:
    rtt = ASSUMED_RTT if candidate.rtt is None else candidate.rtt
    # The more of its slots are taken, the longer each engine step takes.
    itl = (_known_itl(candidate) or best_itl) * (1 + min(1.0, candidate.busy / candidate.slots))
    decode = itl * snapshot.output_tokens
    prefill = _prefill(candidate, snapshot.prompt_tokens, rtt)
    ahead = max(0, candidate.busy + 1 - candidate.slots)
    wait = ahead / candidate.slots * (prefill + decode)
    parts = {"rtt": rtt, "wait": wait, "prefill": prefill, "decode": decode, "wake": candidate.wake}
    return Ranked(candidate, sum(parts.values()), parts)


def _prefill(candidate: Candidate, tokens: int, rtt: float) -> float:
    """Of the part of the prompt that the node has not computed before."""
    new = max(0, tokens - candidate.cached)
    reported = new / candidate.prefill_rate if candidate.prefill_rate > 0 else 0.0
    if candidate.ttft is None:
        return reported
    return max(reported, (candidate.ttft - rtt) * (new / tokens if tokens else 1.0))


def _known_itl(candidate: Candidate) -> float | None:
    if candidate.itl is not None:
        return candidate.itl
    if candidate.decode_rate > 0:
        return 1 / candidate.decode_rate
    return None
