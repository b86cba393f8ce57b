"""How much of each model the mesh can compute at once, as far as this gateway knows; and how long one request would take.

1. A node has room for its slots and a little more, so that it never waits for the next request while it has a free one.
2. A node that failed lately counts only while there is no other.
3. What is counted is kept for `FRESH` seconds, and forgotten as soon as a node comes, goes or changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from gateway.routing.demand import DEFAULT_OUTPUT_TOKENS, demand_of
from gateway.routing.snapshot import ROUTABLE, entry_of, state_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from gateway.models import KnownModels
    from gateway.routing.router import Router
    from mesh.messages.inference import InferenceRequest
    from mesh.registry import PeerView

FRESH = 0.05
AHEAD = 4
"""One more for every so many slots waits at the node itself; at least one."""
MOST_ON_A_NODE = 256
"""What a link carries; a node that does not tell its slots is taken to have as many."""
PREFILL_DISCOUNT = 16
"""So many tokens of a prompt are as much work as one token of an answer."""


class Room(Protocol):
    """What admission asks; `Capacity` is the one of a gateway."""

    def resolve(self, name: str) -> str:
        """The id of the model. Raises NotFound, Conflict."""
        ...

    def of(self, model: str) -> int:
        """Requests that can be under way for it at once; 0: nobody can take one now."""
        ...

    def seconds(self, request: InferenceRequest) -> float | None:
        """How long it would take where it ends first; None: too little is known."""
        ...

    def cost(self, request: InferenceRequest) -> float:
        """Its work, in tokens of an answer."""
        ...

    def changed(self, listener: Callable[[], None]) -> None:
        """Tell this one when there may be more room."""
        ...


class Capacity:
    """`Room` as the registry shows it."""

    def __init__(self, router: Router, models: KnownModels) -> None:
        self._router = router
        self._models = models
        self._counted: dict[str, tuple[float, int]] = {}
        self._listeners: list[Callable[[], None]] = []
        router.registry.subscribe(lambda _event: self._forget())

    def resolve(self, name: str) -> str:
        """As `Room`."""
        return self._models.resolve(name)

    def of(self, model: str) -> int:
        """As `Room`."""
        now = trio.current_time()
        at, found = self._counted.get(model, (-FRESH, 0))
        if now - at >= FRESH:
            found = self._count(model, now)
            self._counted[model] = (now, found)
        return found

    def seconds(self, request: InferenceRequest) -> float | None:
        """As `Room`."""
        return self._router.fastest(request.model, demand=demand_of(request))

    def cost(self, request: InferenceRequest) -> float:
        """As `Room`."""
        expected = self._router.lengths.expected(request.model, DEFAULT_OUTPUT_TOKENS)
        each = expected if request.max_tokens is None else min(expected, request.max_tokens)
        return max(1.0, request.n * each + demand_of(request).prompt_tokens / PREFILL_DISCOUNT)

    def changed(self, listener: Callable[[], None]) -> None:
        """As `Room`."""
        self._listeners.append(listener)

    def _forget(self) -> None:
        self._counted.clear()
        for listener in self._listeners:
            listener()

    def _count(self, model: str, now: float) -> int:
        sound = suspect = 0
        for view in self._router.registry.nodes(model):
            room = _room_at(view, model)
            if any(seen.suspect(now) for seen in self._router.observations.known(view.peer_id, (model,))):
                suspect += room
            else:
                sound += room
        return sound or suspect


def _room_at(view: PeerView, model: str) -> int:
    entry, link = entry_of(view, model), view.link
    if entry is None or link is None or link.leaving or link.closed.is_set() or state_of(view, entry) not in ROUTABLE:
        return 0
    load = link.load.get(model)
    slots = load.slots if load is not None else 0
    return min(slots + max(1, slots // AHEAD), MOST_ON_A_NODE) if slots > 0 else MOST_ON_A_NODE
