"""Requests that belong together go to one node, unless that costs too much.

1. Rendezvous hashing: every gateway finds the same node without asking anybody, and a node that comes or goes moves only the
   keys that it gets or had.
2. It yields when the node would finish later than `SLACK_FACTOR` times the best one's prediction and `SLACK`, when the node
   failed lately, and when it would have to wake while another one is awake.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

from gateway.routing.prediction import predict

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.routing.prediction import Ranked
    from gateway.routing.snapshot import Candidate, Snapshot

SLACK_FACTOR = 1.5
SLACK = 0.250
"""Seconds."""


def keeper(key: bytes, candidates: Iterable[Candidate]) -> Candidate:
    """The node that a key belongs to."""
    return max(candidates, key=lambda candidate: blake2b(key + candidate.peer_id.encode(), digest_size=8).digest())


def favour(snapshot: Snapshot, ordered: list[Ranked], candidate: Candidate | None = None) -> list[Ranked]:
    """Put a node first that is worth it: the named one, or the keeper of the request's affinity. `ordered` is not empty."""
    if candidate is None:
        if not snapshot.affinity:
            return ordered
        candidate = keeper(snapshot.affinity, snapshot.candidates)
    if ordered[0].candidate is candidate or not _worth_it(snapshot, candidate):
        return ordered
    front = next(item for item in ordered if item.candidate is candidate)
    return [front, *(item for item in ordered if item is not front)]


def _worth_it(snapshot: Snapshot, candidate: Candidate) -> bool:
    if candidate.suspect or (candidate.state != "ready" and any(one.state == "ready" for one in snapshot.candidates)):
        return False
    predicted = {item.candidate.peer_id: item.score for item in predict(snapshot)}
    return predicted[candidate.peer_id] <= min(predicted.values()) * SLACK_FACTOR + SLACK
