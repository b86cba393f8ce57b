"""Which nodes a peer that asks keeps links to: the best few of each model, so that the size of the mesh costs it nothing.

1. A node is wanted while one of its models has fewer than `limit` better nodes. Live ones come first, the fastest before others;
   then those being dialled, those that waited longest for a try, and last those whose last dial failed.
2. A node whose every model has `limit` live links is not dialled. What fails makes room for what was not tried.
3. Every second turn one more node is tried for each full model; at the turn after it the slowest over the limit goes. A link that
   carries requests, that the other side dialled, or that leads to a bootstrap peer is never dropped.
4. Askers differ: nodes that nothing else tells apart stand in another order for each of them.
5. Of a model with `limit` live links or dials under way no other node is looked at; and choosing takes at most a small `SHARE` of
   the time: thousands of records come and change all the while.
"""

from __future__ import annotations

import math
import random
import time
import zlib
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mesh.loopback import Loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.dialler import Dialler
    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.registry import PeerView, Registry

LINKS_PER_MODEL = 64
TURN = 15.0
"""Seconds."""
WINDOW = 0.02
"""Seconds that a change waits for others: records come in bunches."""
SHARE = 0.05
"""Of one core, at most, that choosing may take."""
DRAWN = 256
"""Unlinked nodes of one full model that are looked at for an extra one, drawn at random where there are more."""
_NO_MODEL = ""
"""Stands for the model of a node that serves none yet."""


@dataclass(frozen=True, kw_only=True)
class Known:
    """A node as the choice sees it. `order` tells apart what nothing else does; `rtt` in seconds."""

    peer_id: PeerId
    models: frozenset[str]
    linked: bool = False
    dialling: bool = False
    failing: bool = False
    rtt: float | None = None
    tried: float = 0.0
    """When it was last chosen to be dialled, on trio's clock."""
    order: int = 0


@dataclass(frozen=True)
class Choice:
    """`dial`: wanted and not linked, the best first. `surplus`: linked or being dialled and not wanted, the worst last."""

    dial: list[PeerId]
    surplus: list[PeerId]


def full(active: Iterable[Known], limit: int) -> set[str]:
    """The models that those linked and being dialled make full, by rule 1. Pure."""
    held: Counter[str] = Counter()
    for node in sorted((node for node in active if node.linked or (node.dialling and not node.failing)), key=_rank):
        if any(held[model] < limit for model in node.models):
            held.update(node.models)
    return {model for model, count in held.items() if count >= limit}


def choose(nodes: Iterable[Known], limit: int) -> Choice:
    """Rules 1 and 2. Pure. Nodes that are neither linked nor being dialled may be left out when all their models are `full`."""
    held: Counter[str] = Counter()
    choice = Choice([], [])
    for node in sorted(nodes, key=_rank):
        if any(held[model] < limit for model in node.models):
            held.update(node.models)
            if not (node.linked or node.dialling):
                choice.dial.append(node.peer_id)
        elif node.linked or node.dialling:
            choice.surplus.append(node.peer_id)
    return choice


def extras(nodes: Iterable[Known], limit: int) -> list[PeerId]:
    """Rule 3: for each model with `limit` live links, the node that waited longest for its chance. Pure."""
    nodes = list(nodes)
    live = Counter(model for node in nodes if node.linked for model in node.models)
    chosen: dict[str, PeerId] = {}
    for node in sorted(nodes, key=lambda node: (node.tried, node.order)):
        if not (node.linked or node.dialling or node.failing):
            for model in node.models:
                if live[model] >= limit:
                    chosen.setdefault(model, node.peer_id)
    return sorted(set(chosen.values()))


def _rank(node: Known) -> tuple[int, float, float, int]:
    group = 0 if node.linked else 3 if node.failing else 1 if node.dialling else 2
    return group, math.inf if node.rtt is None else node.rtt, node.tried, node.order


@dataclass(frozen=True, kw_only=True)
class Hands:
    """What the choice may do."""

    dialler: Dialler
    dial: Callable[[PeerView], None]
    close: Callable[[PeerId], None]
    """End the link to a peer that nobody needs. Never blocks."""
    forbidden: Callable[[PeerId], bool] = lambda _peer_id: False
    """A node that may not be linked takes no other's place."""


class BestLinks:
    """Applies the choice to a registry whenever that changes, and takes its turns."""

    def __init__(self, registry: Registry, hands: Hands, *, own: PeerId, limit: int) -> None:
        self._registry = registry
        self._hands = hands
        self._own = own
        self._limit = limit
        self._tried: dict[PeerId, float] = {}
        self._work = trio.Event()

    def changed(self) -> None:
        """Something that the choice depends on did. Never blocks."""
        self._work.set()

    async def run(self) -> None:
        """Keep the links well chosen until cancelled."""
        turn = trio.current_time() + TURN
        pause = WINDOW
        while True:
            with trio.move_on_at(turn):
                await self._work.wait()
                await trio.sleep(pause)
            self._work = trio.Event()
            began = time.thread_time()
            if trio.current_time() >= turn:
                turn = trio.current_time() + TURN
                self._take_turn()
            self._dial(choose(self._relevant(), self._limit).dial)
            pause = min(max(WINDOW, (time.thread_time() - began) / SHARE), TURN)

    def _take_turn(self) -> None:
        surplus = choose(self._active(), self._limit).surplus
        dropped = [peer_id for peer_id in surplus if self._drop(self._registry.peers[peer_id])]
        if dropped:
            return
        self._tried = {peer_id: at for peer_id, at in self._tried.items() if peer_id in self._registry.peers}
        self._dial(extras(self._waiting(), self._limit))

    def _drop(self, view: PeerView) -> bool:
        """End the link, or the tries to get one; False for what rule 3 spares."""
        link = view.link
        if (
            isinstance(link, Loopback)
            or not _idle(link)
            or (link is not None and not link.dialled)
            or not self._hands.dialler.drop(view.peer_id)
        ):
            return False
        if link is not None:
            self._hands.close(view.peer_id)
        return True

    def _dial(self, chosen: Iterable[PeerId]) -> None:
        for peer_id in chosen:
            self._tried[peer_id] = trio.current_time()
            self._hands.dial(self._registry.peers[peer_id])

    def _active(self) -> list[Known]:
        """Who is linked or being dialled."""
        views = {view.peer_id: view for view in self._registry.linked_views()}
        for peer_id in self._hands.dialler.wanted:
            if (view := self._registry.peers.get(peer_id)) is not None:
                views[peer_id] = view
        return self._all_known(views.values())

    def _relevant(self) -> list[Known]:
        """Those, and everybody who serves a model that they do not make full."""
        active = self._active()
        done = full(active, self._limit)
        announced = self._registry.announced
        others = {view.peer_id: view for model in announced.ids if model not in done for view in announced.announcers(model)}
        if _NO_MODEL not in done:
            others |= {view.peer_id: view for view in announced.bare}
        for node in active:
            others.pop(node.peer_id, None)
        return [*active, *self._all_known(others.values())]

    def _waiting(self) -> list[Known]:
        """Who is linked or being dialled, and some of those that wait for their chance."""
        active = self._active()
        others: dict[PeerId, PeerView] = {}
        for model in full(active, self._limit):
            announcers = self._registry.announced.announcers(model)
            drawn = list(announcers) if len(announcers) <= DRAWN else random.sample(list(announcers), DRAWN)
            others |= {view.peer_id: view for view in drawn}
        for node in active:
            others.pop(node.peer_id, None)
        return [*active, *self._all_known(others.values())]

    def _all_known(self, views: Iterable[PeerView]) -> list[Known]:
        return [
            self._known(view)
            for view in views
            if view.serves and view.peer_id != self._own and not self._hands.forbidden(view.peer_id)
        ]

    def _known(self, view: PeerView) -> Known:
        target = self._hands.dialler.target(view.peer_id)
        models = frozenset(view.working) or frozenset((_NO_MODEL,))
        return Known(
            peer_id=view.peer_id,
            models=models,
            linked=view.live,
            dialling=target is not None,
            failing=target is not None and target.failing,
            rtt=view.link.rtt if view.link is not None else None,
            tried=self._tried.get(view.peer_id, 0.0),
            order=zlib.crc32((self._own + view.peer_id).encode()),
        )


def _idle(link: Link | None) -> bool:
    return link is None or not (link.in_flight or link.serving)
