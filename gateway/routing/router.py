"""The router: takes a snapshot of the registry, asks the policy, and keeps what a policy may not keep: turns and chance."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import trio

from gateway.observations import Observations
from gateway.routing.policies import DEFAULT_POLICY, policy_named
from gateway.routing.snapshot import Demand, Snapshot, candidates_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gateway.routing.policies import Ranked
    from mesh.identity import PeerId
    from mesh.registry import PeerView, Registry


class Router:
    """Picks nodes of one registry by one policy. `draw` gives random numbers in [0, 1)."""

    def __init__(self, registry: Registry, *, strategy: str = DEFAULT_POLICY, draw: Callable[[], float] = random.random) -> None:
        """Raises Misconfigured when there is no strategy of that name."""
        self.registry = registry
        self.strategy = strategy
        self.observations = Observations()
        self._policy = policy_named(strategy)
        self._draw = draw
        self._turns: Counter[str] = Counter()

    def rank(self, model: str, *, demand: Demand | None = None, without: Collection[PeerId] = ()) -> list[Ranked]:
        """The order in which nodes would be tried now. Changes nothing: asking does not take a turn."""
        candidates = candidates_of(self.registry.nodes(model), model, self.observations, now=trio.current_time())
        snapshot = Snapshot(
            model=model,
            candidates=tuple(candidate for candidate in candidates if candidate.peer_id not in without),
            demand=demand or Demand(),
            turn=self._turns[model],
            draws=(self._draw(), self._draw(), self._draw()),
        )
        return self._policy(snapshot) if snapshot.candidates else []

    def choose(self, model: str, *, demand: Demand, without: Collection[PeerId] = ()) -> PeerView | None:
        """The node to try next; None when there is none beside `without`. A retry does not take another turn."""
        ranked = self.rank(model, demand=demand, without=without)
        if not ranked:
            return None
        self._turns[model] += not without
        return self.registry.peers[ranked[0].candidate.peer_id]
