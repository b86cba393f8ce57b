"""The router: takes a snapshot of the registry, asks the policy, and keeps what a policy may not keep: turns and chance."""

from __future__ import annotations

import random
from collections import Counter
from typing import TYPE_CHECKING

import trio

from gateway.observations import Observations
from gateway.routing.demand import BLOCK_TOKENS, DEFAULT_OUTPUT_TOKENS, Demand
from gateway.routing.filters import sieve
from gateway.routing.lengths import OutputLengths
from gateway.routing.plugins import policy_named
from gateway.routing.policies import DEFAULT_POLICY
from gateway.routing.prediction import measured, predict
from gateway.routing.prefixes import SeenPrefixes
from gateway.routing.snapshot import Snapshot, candidates_of, entry_of, state_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from gateway.routing.filters import PassedOver
    from gateway.routing.prediction import Ranked
    from mesh.identity import PeerId
    from mesh.registry import PeerView, Registry, RegistryEvent


class Router:
    """Picks nodes of one registry by one policy. `draw` gives random numbers in [0, 1)."""

    def __init__(self, registry: Registry, *, strategy: str = DEFAULT_POLICY, draw: Callable[[], float] = random.random) -> None:
        """Raises Misconfigured when there is no strategy of that name."""
        self.registry = registry
        self.strategy = strategy
        self.observations = Observations()
        self.lengths = OutputLengths()
        self.prefixes = SeenPrefixes()
        self.policy = policy_named(strategy)
        self._draw = draw
        self._turns: Counter[str] = Counter()
        registry.subscribe(self._listen)

    def rank(self, model: str, *, demand: Demand | None = None, without: Collection[PeerId] = ()) -> list[Ranked]:
        """The order in which nodes would be tried now. Changes nothing: asking does not take a turn."""
        return self.explain(model, demand=demand, without=without)[0]

    def explain(
        self, model: str, *, demand: Demand | None = None, without: Collection[PeerId] = ()
    ) -> tuple[list[Ranked], list[PassedOver]]:
        """As `rank`, and which nodes of the model are no candidates, and why."""
        demand = demand or Demand()
        kept, passed = sieve(self.registry.nodes(model), model, demand)
        views = [view for view in kept if view.peer_id not in without]
        return (self.policy(self._snapshot(model, demand, views)) if views else []), passed

    def fastest(self, model: str, *, demand: Demand) -> float | None:
        """Seconds in which the best node would have answered; None while there is one whose speed is not known."""
        kept, _ = sieve(self.registry.nodes(model), model, demand)
        if not kept:
            return None
        predicted = predict(self._snapshot(model, demand, kept))
        return min(item.score for item in predicted) if all(measured(item.candidate) for item in predicted) else None

    def choose(self, model: str, *, demand: Demand, without: Collection[PeerId] = (), numerics: str = "") -> PeerView | None:
        """The node to try next; None when there is none beside `without`. A retry does not take another turn.

        `numerics`: one that computes alike is taken before all others.
        """
        ranked = self.rank(model, demand=demand, without=without)
        if not ranked:
            return None
        self._turns[model] += not without
        chosen = (self._alike(ranked, model, numerics) or ranked[0]).candidate.peer_id
        self.prefixes.sent(chosen, demand.blocks)
        return self.registry.peers[chosen]

    def _alike(self, ranked: list[Ranked], model: str, numerics: str) -> Ranked | None:
        if not numerics:
            return None
        entries = ((item, entry_of(self.registry.peers[item.candidate.peer_id], model)) for item in ranked)
        return next((item for item, entry in entries if entry is not None and entry.numerics == numerics), None)

    def _snapshot(self, model: str, demand: Demand, views: list[PeerView]) -> Snapshot:
        held = self.prefixes.held(demand.blocks)
        cached = {node: min(blocks * BLOCK_TOKENS, demand.prompt_tokens) for node, blocks in held.items()}
        expected = self.lengths.expected(model, DEFAULT_OUTPUT_TOKENS)
        return Snapshot(
            model=model,
            candidates=candidates_of(views, model, self.observations, now=trio.current_time(), cached=cached),
            prompt_tokens=demand.prompt_tokens,
            output_tokens=expected if demand.output_limit is None else min(expected, demand.output_limit),
            affinity=demand.affinity,
            prefix=demand.blocks[0] if demand.blocks else b"",
            client=demand.client,
            turn=self._turns[model],
            draws=(self._draw(), self._draw(), self._draw()),
        )

    def _listen(self, event: RegistryEvent) -> None:
        """A node that went, or whose worker did, has an empty cache when it is back."""
        view = event.peer
        if event.kind == "left" or not any(state_of(view, entry) == "ready" for entry in view.record.models):
            self.prefixes.forget(view.peer_id)
