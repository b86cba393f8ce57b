"""Keeps a peer that cannot be dialled reachable: a few linked relays, asked for as long as it is needed.

1. `WANTED` reservations are kept, with bootstrap peers before others and near relays before far ones. A relay that refuses is
   asked again after `REFUSED` seconds.
2. A reservation is over with the link to its relay, and made again as soon as there is another one.
3. Where no linked peer is a relay, one that a record names is dialled.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mesh.messages.relay import Release, Reserve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.messages.relay import Reserved
    from mesh.registry import PeerView, Registry
    from mesh.trail import Trail

WANTED = 2
REFUSED = 60.0
ANSWER_LIMIT = 5.0
"""Seconds."""
EVERY = 30.0
"""Seconds between two looks without any news."""
MAX_REFUSALS = 1_024
WAY = "relay"
"""In the trail."""


@dataclass(slots=True, eq=False)
class _Question:
    link: Link
    answer: Reserved | None = None
    answered: trio.Event = field(default_factory=trio.Event)


class Reservations:
    """`needed` says whether we must be reached over relays; `changed` is told when the relays that hold are others."""

    def __init__(
        self,
        registry: Registry,
        trail: Trail,
        *,
        needed: Callable[[], bool],
        changed: Callable[[], None],
        dial: Callable[[PeerView], None],
    ) -> None:
        self._registry = registry
        self._trail = trail
        self._needed = needed
        self._changed = changed
        self._dial = dial
        self._held: dict[PeerId, Link] = {}
        self._refused: dict[PeerId, float] = {}
        self._question: _Question | None = None
        self._news = trio.Event()

    @property
    def relays(self) -> list[PeerId]:
        """Who reaches us for others, now."""
        return [peer_id for peer_id in self._held if self._live(peer_id) is not None]

    def look(self) -> None:
        """Something changed: a link, a record, what we know of ourselves. Never blocks."""
        self._news.set()

    def hear(self, link: Link, answer: Reserved) -> None:
        """A peer answered; what nobody asked is dropped."""
        question = self._question
        if question is not None and question.link is link:
            question.answer = answer
            question.answered.set()

    async def run(self) -> None:
        """Keep the reservations until cancelled."""
        while True:
            with trio.move_on_after(EVERY):
                await self._news.wait()
            self._news = trio.Event()
            before = set(self._held)
            self._held = {peer_id: link for peer_id, link in self._held.items() if self._same(peer_id, link)}
            if self._needed():
                await self._fill()
            else:
                self._release()
            if set(self._held) != before:
                self._changed()

    async def _fill(self) -> None:
        for view in self._candidates():
            if len(self._held) >= WANTED:
                return
            link = self._live(view.peer_id)
            if link is not None:
                await self._ask(link)
        if not self._held:
            willing = (view for view in self._registry.peers.values() if view.relay and view.link is None)
            for view in heapq.nlargest(1, willing, key=lambda view: view.learned):
                self._dial(view)

    def _candidates(self) -> Iterable[PeerView]:
        now = trio.current_time()
        found = [
            view
            for view in self._registry.linked_views()
            if view.relay and view.live and view.peer_id not in self._held and now >= self._refused.get(view.peer_id, now)
        ]
        return sorted(found, key=_order)

    async def _ask(self, link: Link) -> None:
        self._question = question = _Question(link)
        link.send(Reserve())
        with trio.move_on_after(ANSWER_LIMIT):
            await question.answered.wait()
        self._question = None
        answer = question.answer
        if answer is not None and not answer.code:
            self._held[link.peer_id] = link
            self._trail.add(WAY, link.peer_id, "reaches us for others", found=True)
            return
        why = " ".join(answer.message.split())[:200] if answer else f"it did not answer within {ANSWER_LIMIT:g} s"
        self._refused[link.peer_id] = trio.current_time() + REFUSED
        if len(self._refused) > MAX_REFUSALS:
            del self._refused[next(iter(self._refused))]
        self._trail.add(WAY, link.peer_id, why, code=answer.code[:64] if answer else "no_answer")

    def _release(self) -> None:
        for peer_id in self._held:
            link = self._live(peer_id)
            if link is not None:
                link.send(Release())
        self._held.clear()

    def _same(self, peer_id: PeerId, link: Link) -> bool:
        """True while some link leads to the very process that gave the reservation."""
        live = self._live(peer_id)
        return live is not None and live.hello.instance == link.hello.instance

    def _live(self, peer_id: PeerId) -> Link | None:
        view = self._registry.peers.get(peer_id)
        link = view.link if view is not None and view.live else None
        # A loopback is no link, and a relay behind a relay none for us.
        return link if link is not None and link.carrier is not None and link.via is None else None


def _order(view: PeerView) -> tuple[bool, float]:
    rtt = view.link.rtt if view.link is not None else None
    return view.role != "bootstrap", math.inf if rtt is None else rtt
