"""Who is there: the records that peers signed, and the links that prove it.

1. Data only: no I/O, no tasks. Listeners are called at once, in the order of events, and must not block.
2. A record of a lower or equal sequence never replaces a newer one. A peer is there (`joined`) exactly while it has a live link.
3. A record without a link lives `ttl` seconds, less the age it had on receipt. A linked peer never expires: that is the truth.
4. At most `MAX_PEERS` records with `MAX_NAMES` names of models are held. Those without a link that expire first make room; linked
   peers are never evicted.
5. A record that its peer withdrew (`forget`) does not come back by way of others.
6. Whoever announces models serves them: nodes, gateways with foreign services, and ourselves by way of a `Loopback`.
7. What a request or a heartbeat asks costs by the number of links at most, never by the number of records.
"""

from __future__ import annotations

import heapq
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from mesh.identity import PeerId
from mesh.model_index import ModelIndex
from mesh.peer_view import PeerView
from mesh.record import RecordError, open_record, read_unchecked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.link import Link
    from mesh.loopback import Loopback
    from mesh.messages.record import ModelEntry, ModelState, NodeRecord, SealedRecord

MAX_PEERS = 16_384
MAX_NAMES = 16 * MAX_PEERS
"""Names of models over all records; more means that somebody floods us."""
MAX_WITHDRAWN = 1_000
MAKE_ROOM = 0.01
"""Of all records, dropped at once when there is no room: to look for the oldest costs a look at everybody."""
BEST_FIRST: tuple[ModelState, ...] = ("ready", "asleep", "loading", "failed")

logger = logging.getLogger(__name__)

__all__ = ["PeerView", "Registry", "RegistryEvent"]


@dataclass(frozen=True)
class RegistryEvent:
    """A linked peer came, went, or changed its record or the state of a model."""

    kind: Literal["joined", "left", "changed"]
    peer: PeerView
    reason: str = ""


class Registry:
    """See the head of this file for the rules. `clock` is trio's unless a test has its own."""

    def __init__(self, own: PeerId, *, mesh: str, clock: Callable[[], float] = trio.current_time) -> None:
        self.peers: dict[PeerId, PeerView] = {}
        self.own = own
        self._mesh = mesh
        self._clock = clock
        self._listeners: list[Callable[[RegistryEvent], None]] = []
        self._withdrawn: dict[str, tuple[int, float]] = {}
        self._linked: dict[PeerId, PeerView] = {}
        self._asked = ModelIndex()
        """Of those in `_linked`."""
        self.announced = ModelIndex()
        """Of everybody. Read it; it is this class that changes it."""

    def learn(self, sealed: SealedRecord, *, age: float = 0.0) -> PeerView | None:
        """Take in a record that is `age` seconds old. None: bad, too old, of ourselves or of another mesh."""
        try:
            if not self._wanted(read_unchecked(sealed), age):
                return None
            record = open_record(sealed)
        except RecordError as error:
            logger.debug("dropped a record: %s", error)
            return None
        return self._keep(record, sealed, self._clock() - max(0.0, age))

    def linked(self, link: Link) -> None:
        """A link is up: its peer is there. A newer link of the same peer takes the place of an older one."""
        self._withdrawn.pop(link.peer_id, None)
        self.learn(link.hello.record)
        view = self.peers.get(link.peer_id)
        if view is None:
            view = self._insert(PeerView(link.record, link.hello.record, self._clock()))
        joined = view.link is None
        self._prove(view, link)
        if joined:
            self._tell("joined", view)

    def unlinked(self, link: Link) -> None:
        """A link ended. Nothing happens when another one took its place."""
        view = self.peers.get(link.peer_id)
        if view is None or view.link is not link:
            return
        self._part(view)
        view.learned = self._clock()
        self._tell("left", view, link.reason)

    def beaten(self, link: Link) -> None:
        """A heartbeat came: tell when a model changed its state."""
        view = self.peers.get(link.peer_id)
        if view is None or view.link is not link:
            return
        states = {name: load.state for name, load in link.load.items()}
        if states != view.states:
            before, view.states = view.models, states
            if view.models != before:
                self._tell("changed", view)

    def serve(self, link: Loopback, record: NodeRecord, sealed: SealedRecord) -> None:
        """What we serve ourselves: we are there like any peer while `record` names models."""
        view = self.peers.get(self.own)
        if not record.models:
            if view is not None:
                self._drop(view)
                self._tell("left", view, "it serves nothing any more")
            return
        before = None if view is None else (_content(view.record), view.states)
        if view is None:
            view = self._insert(PeerView(record, sealed, self._clock(), link))
        else:
            self._replace(view, record, sealed, self._clock())
        self._prove(view, link)
        if before != (_content(record), view.states):
            self._tell("joined" if before is None else "changed", view)

    def forget(self, peer_id: PeerId, reason: str) -> None:
        """The peer said Leave, or expired. Its record comes back only with a higher sequence or a new link."""
        view = self.peers.get(peer_id)
        if view is None:
            return
        self._drop(view)
        self._withdraw(view)
        if view.link is not None:
            self._tell("left", view, reason)

    def expire(self) -> None:
        """Drop what nobody has proven for its ttl."""
        now = self._clock()
        for view in [view for view in self.peers.values() if view.link is None and view.expires <= now]:
            self._drop(view)
        for peer_id in [peer_id for peer_id, (_, until) in self._withdrawn.items() if until <= now]:
            del self._withdrawn[peer_id]

    def age(self, view: PeerView) -> float:
        """Seconds since the last proof that the peer lives."""
        return 0.0 if view.live else max(0.0, self._clock() - view.learned)

    def nodes(self, model: str | None = None) -> list[PeerView]:
        """Who serves models, with a live link, not leaving. With `model`: by its id or, if nobody has that, by alias."""
        if model is None:
            return [view for view in self._linked.values() if view.serves and view.live]
        exact = [view for view in self._asked.announcers(model) if view.live]
        return exact or [view for view in self._asked.called(model) if view.live]

    def linked_views(self) -> list[PeerView]:
        """Everybody with a link, ourselves by way of a loopback among them."""
        return list(self._linked.values())

    def catalog(self) -> list[ModelEntry]:
        """One entry per model id over all live nodes, the best state first, sorted by id."""
        best: dict[str, ModelEntry] = {}
        for entry in (entry for view in self.nodes() for entry in view.models):
            known = best.get(entry.id)
            if known is None or BEST_FIRST.index(entry.state) < BEST_FIRST.index(known.state):
                best[entry.id] = entry
        return [best[name] for name in sorted(best)]

    def subscribe(self, listener: Callable[[RegistryEvent], None]) -> Callable[[], None]:
        """Hear every event from now on; the returned function ends that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def newest(self, views: Iterable[PeerView], limit: int) -> list[PeerView]:
        """At most `limit` of them, the most recently proven first."""
        now = self._clock()
        return heapq.nsmallest(limit, views, key=lambda view: 0.0 if view.live else max(0.0, now - view.learned))

    def _wanted(self, record: NodeRecord, age: float) -> bool:
        """Everything that can be decided without the price of a signature."""
        known = self.peers.get(PeerId(record.peer_id))
        withdrawn = self._withdrawn.get(record.peer_id, (-1, 0.0))[0]
        return (
            record.peer_id != self.own
            and record.mesh == self._mesh
            and age < record.ttl
            and record.sequence > withdrawn
            and (known is None or record.sequence > known.sequence)
        )

    def _keep(self, record: NodeRecord, sealed: SealedRecord, learned: float) -> PeerView | None:
        view = self.peers.get(PeerId(record.peer_id))
        if view is None:
            return self._insert(PeerView(record, sealed, learned)) if self._has_room() else None
        changed = view.live and _content(view.record) != _content(record)
        self._replace(view, record, sealed, learned)
        if self.announced.names > MAX_NAMES:
            self._evict()
        if changed:
            self._tell("changed", view)
        return view

    def _has_room(self) -> bool:
        """Make room for one more, if an unlinked peer can go."""
        return (len(self.peers) < MAX_PEERS and self.announced.names < MAX_NAMES) or self._evict()

    def _evict(self) -> bool:
        unlinked = (view for view in self.peers.values() if view.link is None)
        going = heapq.nsmallest(max(1, int(MAX_PEERS * MAKE_ROOM)), unlinked, key=lambda view: view.expires)
        for view in going:
            self._drop(view)
        return bool(going)

    # Every change of `peers`, of a view's record and of its link goes through these, which keep the indexes true.

    def _insert(self, view: PeerView) -> PeerView:
        self.peers[view.peer_id] = view
        self.announced.add(view)
        return view

    def _drop(self, view: PeerView) -> None:
        del self.peers[view.peer_id]
        self.announced.remove(view)
        if self._linked.pop(view.peer_id, None):
            self._asked.remove(view)

    def _replace(self, view: PeerView, record: NodeRecord, sealed: SealedRecord, learned: float) -> None:
        indexes = [self.announced, self._asked] if view.peer_id in self._linked else [self.announced]
        for index in indexes:
            index.remove(view)
        view.take(record, sealed, learned)
        for index in indexes:
            index.add(view)

    def _prove(self, view: PeerView, link: Link | Loopback) -> None:
        view.link = link
        view.states = {name: load.state for name, load in link.load.items()}
        if view.peer_id not in self._linked:
            self._linked[view.peer_id] = view
            self._asked.add(view)

    def _part(self, view: PeerView) -> None:
        view.link = None
        if self._linked.pop(view.peer_id, None):
            self._asked.remove(view)

    def _withdraw(self, view: PeerView) -> None:
        self._withdrawn.pop(view.peer_id, None)
        if len(self._withdrawn) >= MAX_WITHDRAWN:
            del self._withdrawn[next(iter(self._withdrawn))]
        self._withdrawn[view.peer_id] = (view.sequence, self._clock() + view.ttl)

    def _tell(self, kind: Literal["joined", "left", "changed"], view: PeerView, reason: str = "") -> None:
        for listener in list(self._listeners):
            try:
                listener(RegistryEvent(kind, view, reason))
            except Exception:
                logger.exception("a listener of the registry failed on %s", kind)


def _content(record: NodeRecord) -> NodeRecord:
    """A record without what changes at every issue."""
    return msgspec.structs.replace(record, sequence=0, issued_at=0)
