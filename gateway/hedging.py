"""Hedging: a second node is asked when the first token is later than it is for 19 requests of 20.

1. Only requests that ask for it, or all where the gateway is set up so; only before the first token; at most once for each.
2. The first of the two to give a token wins, and nothing of the other one is passed on: it is cancelled, and has not failed.
3. A second node is asked only if it is awake, sound, and has a free slot, and as long as the budget lasts: a small share of the
   requests. A mesh that is slow because it is full gets no more work for it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio

from gateway.budget import Budget
from mesh.errors import MeshError

if TYPE_CHECKING:
    from gateway.attempt import Attempt
    from gateway.delivery import Delivery
    from gateway.routing.snapshot import Candidate
    from mesh.messages.inference import InferenceRequest
    from mesh.registry import PeerView

REMEMBERED = 200
"""First tokens of one model that the percentile is taken over."""
ENOUGH = 20
"""Fewer say nothing about the slowest twentieth."""
MAX_MODELS = 1_024
LEAST_PATIENCE = 0.02
"""Seconds: below it the second node could not be faster."""
SHARE = 0.05
BURST = 20.0


Attempting = Callable[["PeerView", "Race"], Awaitable[None]]


class FirstTokens:
    """How long the first tokens of each model took lately, in seconds."""

    def __init__(self) -> None:
        self._seen: dict[str, deque[float]] = {}

    def saw(self, model: str, seconds: float) -> None:
        """One more."""
        lately = self._seen.pop(model, None) or deque(maxlen=REMEMBERED)
        lately.append(seconds)
        self._seen[model] = lately
        if len(self._seen) > MAX_MODELS:
            del self._seen[next(iter(self._seen))]

    def late(self, model: str) -> float | None:
        """What 19 of 20 stay below; None while too few were seen."""
        lately = self._seen.get(model, ())
        return sorted(lately)[len(lately) * 95 // 100] if len(lately) >= ENOUGH else None


class Hedging:
    """When a second node is asked. `always`: for requests that say nothing about it, too."""

    def __init__(self, *, always: bool = False) -> None:
        self.first_tokens = FirstTokens()
        self.budget = Budget(share=SHARE, per_second=0.0, most=BURST)
        self.hedged = self.won = 0
        """Requests that two nodes were asked for, and those that the second one answered."""
        self._always = always

    def patience(self, request: InferenceRequest) -> float | None:
        """Seconds to wait for the first token before a second node is asked; None: no other is asked."""
        if not (self._always if request.hedge is None else request.hedge):
            return None
        late = self.first_tokens.late(request.model)
        return None if late is None else max(late, LEAST_PATIENCE)

    async def race(
        self, first: PeerView, attempt: Attempting, others: Callable[[], list[PeerView]], delivery: Delivery, patience: float
    ) -> list[tuple[PeerView, MeshError]]:
        """Let one node answer, and another one too when that is late. Who was lost; nobody when the answer is complete."""
        race = Race()

        async def run(node: PeerView, *, second: bool) -> None:
            try:
                await attempt(node, race)
            except MeshError as error:
                race.failed(node, error)
            except Exception as error:  # noqa: BLE001 - it is raised below, as itself and not in a group
                race.broke(error)
            else:
                self.won += second and delivery.ended and delivery.node == node.peer_id

        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(run, first, second=False))
            if await race.late(patience) and (found := others()) and self.budget.withdraw():
                delivery.course.take("hedged")
                self.hedged += 1
                nursery.start_soon(partial(run, found[0], second=True))
        if race.fault is not None:
            raise race.fault
        return [] if delivery.ended else race.lost


def has_room(candidate: Candidate) -> bool:
    """True for a node that could begin at once."""
    return candidate.state == "ready" and not candidate.suspect and candidate.busy < candidate.slots


class Race:
    """Nodes that work on the same request until one gives a token."""

    def __init__(self) -> None:
        self.winner: Attempt | None = None
        self.lost: list[tuple[PeerView, MeshError]] = []
        """Who failed, in order."""
        self.fault: Exception | None = None
        """Something broke here, not at a node."""
        self._running: list[Attempt] = []
        self._news = trio.Event()

    def enter(self, attempt: Attempt) -> None:
        """It begins."""
        self._running.append(attempt)

    def leave(self, attempt: Attempt) -> None:
        """It ended, however."""
        self._running.remove(attempt)

    def claim(self, attempt: Attempt) -> bool:
        """The attempt has something for the client. True when it is the first; the others end."""
        if self.winner is None:
            self.winner = attempt
            self._news.set()
            for other in self._running:
                if other is not attempt:
                    other.lose()
        return self.winner is attempt

    def failed(self, node: PeerView, error: MeshError) -> None:
        """It ended without an answer."""
        self.lost.append((node, error))
        self._news.set()

    def broke(self, fault: Exception) -> None:
        """The client's side of it is broken: nobody needs to go on."""
        self.fault = fault
        for other in self._running:
            other.lose()
        self._news.set()

    async def late(self, seconds: float) -> bool:
        """Wait so long for the first to win or fail. True when it did neither."""
        with trio.move_on_after(seconds):
            await self._news.wait()
        return not self._news.is_set()
