"""The search of one request for a node: which ones it tried, what they said, and what that means.

1. An error that another node may not have is retried; what is wrong with the request itself is not.
2. A node that is full, away or loading says nothing against the request; a lost link or a dead worker might: such failures are
   counted, so that a request that kills workers stops after a few.
3. A node that gave tokens before it was lost showed that the request does not kill it: the counting begins anew.
4. A tried node may be tried again only when it has changed since: another link, or another state of its model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.absence import RETRY_AFTER, absence
from mesh.errors import BackendFailed, Busy, MeshError, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.routing.demand import Demand
    from mesh.identity import PeerId
    from mesh.messages.inference import InferenceRequest
    from mesh.registry import PeerView

OUT_OF_DATE = frozenset(("model_not_found", "request_in_progress", "stream_not_found"))
"""The node serves the model no longer, or has not noticed yet that the first try was lost, or keeps the request no longer."""
NOT_ASKED = frozenset(("stream_not_found", "stopped"))
"""The node does not go on by itself; it was not asked to begin behind what was given."""


class Search:
    """What is remembered between the attempts of one request.

    `patience`: seconds it may still wait for a node; `loading_patience`: for one that loads the model.
    """

    def __init__(self, model: str, demand: Demand, *, patience: float, max_failures: int, loading_patience: float = 0.0) -> None:
        self.model = model
        self.demand = demand
        self.patience = patience
        self.loading_patience = loading_patience
        self.tried: set[PeerId] = set()
        self.numerics = ""
        """Nodes that compute like this come first; empty: any."""
        self._errors: list[MeshError] = []
        self._max_failures = max_failures
        self._failures_left = max_failures

    def failed(self, node: PeerId, error: MeshError) -> None:
        """The attempt at `node` ended with `error`."""
        if error.code not in NOT_ASKED:
            self.tried.add(node)
        self._errors.append(error)
        self._failures_left -= is_failure(error)

    def advanced(self, node: PeerId, error: MeshError, *, patience: float) -> None:
        """The attempt at `node` gave some of the answer before it ended: what failed before says nothing about what is left."""
        self.tried.clear()
        self._errors.clear()
        self._failures_left = self._max_failures
        self.patience = patience
        self.failed(node, error)

    @property
    def exhausted(self) -> bool:
        """True when the request is more likely at fault than the nodes."""
        return self._failures_left <= 0

    @property
    def worth_waiting(self) -> bool:
        """True when the nodes were away, not full or broken: one may be back in a moment."""
        return max(self.patience, self.loading_patience) > 0 and all(
            isinstance(error, Unavailable) or error.code == "worker_died" for error in self._errors
        )

    def waited(self, seconds: float) -> None:
        """So long for a node that was not there."""
        self.patience -= seconds
        self.loading_patience -= seconds

    def verdict(self, views: Iterable[PeerView] = ()) -> MeshError:
        """What the client is told: that nodes were full if any was, else what the last one said.

        When none was asked, how far the model's nodes are: `views`.
        """
        if not self._errors:
            return absence(self.model, views)
        error = next((error for error in reversed(self._errors) if isinstance(error, Busy)), self._errors[-1])
        if error.retry_after is None and isinstance(error, (Busy, Unavailable)):
            error.retry_after = RETRY_AFTER
        return error


def may_retry(error: MeshError) -> bool:
    """True when another node may do better: the kind says so, or what we knew of this one was out of date."""
    return error.retriable or error.code in OUT_OF_DATE


def is_failure(error: MeshError) -> bool:
    """True when something broke, at the node or on the way; False when the node just could not take the request."""
    if isinstance(error, Unavailable):
        return error.code == "link_lost"
    return error.retriable and not isinstance(error, Busy)


def is_begun(request: InferenceRequest) -> bool:
    """True when some of the answer was given out already."""
    return bool(request.prior) or request.said is not None


def interrupted(error: MeshError) -> MeshError:
    """What the client of a stream that had begun is told."""
    if not error.retriable:
        return error
    message = f"the node was lost in the middle of the answer ({error.code}); send the request again"
    return BackendFailed(message, code="stream_interrupted")
