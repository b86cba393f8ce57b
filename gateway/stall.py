"""Nodes that hang: they beat on, but a request makes no progress.

1. Progress is a token of the request, or a step of the model's engine as heartbeats count them. A node is given up after
   `max(FLOOR, FACTOR x the slowest gap)` without either; a backend that counts no steps, or is not ready, never.
2. Nobody is given up where no other node could go on: a slow node is better than none. The request's own limits hold anyway.
3. What is not known yet errs on the side of patience: until gaps were seen, the time to the first token stands for them; before
   the first token nothing is given up at a node that never answered; each stall doubles the patience with the next node.
4. When our own loop was late, nobody is blamed for it.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from gateway.attempt import Attempt
    from gateway.delivery import Delivery
    from gateway.observations import Observation
    from mesh.link import Link
    from mesh.loopback import Loopback

FLOOR = 2.0
FACTOR = 3.0
EVERY = 0.25
"""Seconds between two looks at all requests."""
LATE = 0.5
"""Seconds; a look that comes later than this was held up here."""
MAX_DOUBLINGS = 5


@dataclass(eq=False)
class _Watched:
    attempt: Attempt
    link: Link | Loopback
    model: str
    gap: float | None
    ttft: float | None
    """Seconds, as seen of this node before; None: never."""
    factor: float
    spare: Callable[[], bool]
    step: int = 0
    stepped_at: float = 0.0

    def look(self, now: float) -> None:
        """Give the node up when it hangs."""
        load = self.link.load.get(self.model)
        step = load.step if load is not None and load.state == "ready" else 0
        if step != self.step or not step:
            self.step, self.stepped_at = step, now
            return
        waited = min(self.attempt.since_progress(now), now - self.stepped_at)
        patience = self._patience()
        if patience is not None and waited > patience and self.spare():
            self.attempt.give_up(waited)

    def _patience(self) -> float | None:
        first = self.attempt.first_token_after
        if first is None:
            # The first token may take as long as it usually does.
            known = None if self.gap is None else max(self.gap, self.ttft or 0.0)
        else:
            known = max(first if self.gap is None else self.gap, self.attempt.worst_gap)
        return None if known is None else max(FLOOR, FACTOR * known) * self.factor


class StallWatch:
    """Looks at all attempts while `run` is running."""

    def __init__(self) -> None:
        self._watched: set[_Watched] = set()

    @contextmanager
    def watching(
        self,
        attempt: Attempt,
        link: Link | Loopback,
        model: str,
        delivery: Delivery,
        seen: Observation,
        spare: Callable[[], bool],
    ) -> Iterator[None]:
        """Watch one attempt on one link. `spare` tells whether another node could go on."""
        factor = 2.0 ** min(delivery.stalls, MAX_DOUBLINGS)
        one = _Watched(attempt, link, model, seen.slowest_gap, seen.ttft, factor, spare)
        one.stepped_at = trio.current_time()
        self._watched.add(one)
        try:
            yield
        finally:
            self._watched.discard(one)

    async def run(self) -> None:
        """Look until cancelled."""
        before = trio.current_time()
        while True:
            await trio.sleep(EVERY)
            now = trio.current_time()
            late, before = now - before > EVERY + LATE, now
            for one in list(self._watched):
                if late:
                    one.stepped_at = now
                else:
                    one.look(now)
