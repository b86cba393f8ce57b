"""Asking linked nodes how they are, and answering.

1. A question costs one message each way; who asks while an answer is due waits for the same one. An answer that nobody is waiting
   for is dropped, so a peer keeps nothing here by talking.
2. Nothing waits longer than `PATIENCE`. A peer that says nothing of the feature is never asked.
3. The own figures are taken at most every `FRESH` seconds, however often they are asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import trio

from mesh.messages.metrics import Measure, Measured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.messages.metrics import MetricsControl, NodeMetrics

FEATURE = "metrics"
PATIENCE = 1.0
FRESH = 0.5


class Measuring:
    """One peer's part. `measure` takes our own figures; a peer without it does not offer the feature."""

    def __init__(self) -> None:
        self.measure: Callable[[], NodeMetrics] | None = None
        self._own: NodeMetrics | None = None
        self._taken = -math.inf
        self._waiting: dict[Link, _Answer] = {}

    @property
    def features(self) -> list[str]:
        """What our hello says."""
        return [FEATURE] if self.measure is not None else []

    def hear(self, link: Link, message: MetricsControl) -> None:
        """Answer a question, or take an answer. Never blocks."""
        match message:
            case Measure():
                if (own := self.own()) is not None:
                    link.send(Measured(own))
            case Measured():
                if (answer := self._waiting.get(link)) is not None:
                    answer.metrics = message.metrics
                    answer.there.set()

    def own(self) -> NodeMetrics | None:
        """Our own figures; None for a peer that has none."""
        now = trio.current_time()
        if self.measure is not None and now - self._taken >= FRESH:
            self._own, self._taken = self.measure(), now
        return self._own

    async def ask(self, link: Link) -> NodeMetrics | None:
        """The other side's figures. Blocks for at most PATIENCE; None when they do not come or there are none."""
        if FEATURE not in link.hello.features or link.closed.is_set():
            return None
        answer = self._waiting.get(link)
        if answer is None:
            answer = self._waiting[link] = _Answer()
            link.send(Measure())
        answer.askers += 1
        try:
            with trio.move_on_after(PATIENCE):
                await answer.there.wait()
        finally:
            answer.askers -= 1
            if not answer.askers or answer.there.is_set():
                self._forget(link, answer)
        return answer.metrics

    async def ask_all(self, links: Iterable[Link]) -> dict[PeerId, NodeMetrics]:
        """The same of many at once; those that do not answer are left out."""
        found: dict[PeerId, NodeMetrics] = {}

        async def one(link: Link) -> None:
            if (metrics := await self.ask(link)) is not None:
                found[link.peer_id] = metrics

        async with trio.open_nursery() as nursery:
            for link in links:
                nursery.start_soon(one, link)
        return found

    def _forget(self, link: Link, answer: _Answer) -> None:
        if self._waiting.get(link) is answer:
            del self._waiting[link]


class _Answer:
    """What is waited for from one link."""

    def __init__(self) -> None:
        self.there = trio.Event()
        self.metrics: NodeMetrics | None = None
        self.askers = 0
