"""Who is there: the records that peers signed, and the links that prove it.

1. Data only: no I/O, no tasks. Listeners are called at once, in the order of events, and must not block.
2. A record of a lower or equal sequence never replaces a newer one. A peer is there (`joined`) exactly while it has a live link.
3. A record without a link lives `ttl` seconds, less the age it had on receipt. A linked peer never expires: that is the truth.
4. At most `MAX_PEERS` records are held without a link. Those that expire first make room; linked peers are never evicted.
5. A record that its peer withdrew (`forget`) does not come back by way of others.
6. Whoever announces models serves them: nodes, gateways with foreign services, and ourselves by way of a `Loopback`.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import msgspec
import trio

from mesh.identity import PeerId
from mesh.record import RecordError, open_record, read_unchecked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.link import Link
    from mesh.loopback import Loopback
    from mesh.messages.record import ModelEntry, ModelState, NodeRecord, SealedRecord

MAX_PEERS = 1_000
BEST_FIRST: tuple[ModelState, ...] = ("ready", "asleep", "loading", "failed")

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class PeerView:
    """One peer, as we know it now. The same object for as long as the peer is known."""

    record: NodeRecord
    sealed: SealedRecord
    learned: float
    """When the peer issued the record, on our own clock, as far as is known: receipt less the age it had."""
    link: Link | Loopback | None = None
    states: dict[str, ModelState] = field(default_factory=dict)
    """Of its models, from its last heartbeat: fresher than the record."""

    @property
    def peer_id(self) -> PeerId:
        """Who it is."""
        return PeerId(self.record.peer_id)

    @property
    def expires(self) -> float:
        """When the record dies without a link, on trio's clock."""
        return self.learned + self.record.ttl

    @property
    def live(self) -> bool:
        """True while a link proves it and it has not said Leave."""
        return self.link is not None and not self.link.leaving and not self.link.closed.is_set()

    @property
    def serves(self) -> bool:
        """True for a node, and for a gateway that announces models of foreign services."""
        return self.record.role == "node" or bool(self.record.models)

    @property
    def models(self) -> list[ModelEntry]:
        """The record's entries in the states that the last heartbeat told."""
        return [self._present(entry) for entry in self.record.models]

    def _present(self, entry: ModelEntry) -> ModelEntry:
        state = self.states.get(entry.id, entry.state)
        return entry if state == entry.state else msgspec.structs.replace(entry, state=state)


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
            self.peers[link.peer_id] = view = PeerView(link.record, link.hello.record, self._clock())
        joined = view.link is None
        view.link = link
        view.states = {name: load.state for name, load in link.load.items()}
        if joined:
            self._tell("joined", view)

    def unlinked(self, link: Link) -> None:
        """A link ended. Nothing happens when another one took its place."""
        view = self.peers.get(link.peer_id)
        if view is None or view.link is not link:
            return
        view.link = None
        view.states = {}
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
            if self.peers.pop(self.own, None) and view is not None:
                self._tell("left", view, "it serves nothing any more")
            return
        before = None if view is None else (_content(view.record), view.states)
        if view is None:
            self.peers[self.own] = view = PeerView(record, sealed, self._clock(), link)
        view.record, view.sealed = record, sealed
        view.states = {name: load.state for name, load in link.load.items()}
        if before != (_content(record), view.states):
            self._tell("joined" if before is None else "changed", view)

    def forget(self, peer_id: PeerId, reason: str) -> None:
        """The peer said Leave, or expired. Its record comes back only with a higher sequence or a new link."""
        view = self.peers.pop(peer_id, None)
        if view is None:
            return
        self._withdraw(view)
        if view.link is not None:
            self._tell("left", view, reason)

    def expire(self) -> None:
        """Drop what nobody has proven for its ttl."""
        now = self._clock()
        for view in [view for view in self.peers.values() if view.link is None and view.expires <= now]:
            del self.peers[view.peer_id]
        for peer_id in [peer_id for peer_id, (_, until) in self._withdrawn.items() if until <= now]:
            del self._withdrawn[peer_id]

    def age(self, view: PeerView) -> float:
        """Seconds since the last proof that the peer lives."""
        return 0.0 if view.live else max(0.0, self._clock() - view.learned)

    def nodes(self, model: str | None = None) -> list[PeerView]:
        """Who serves models, with a live link, not leaving. With `model`: by its id or, if nobody has that, by alias."""
        nodes = [view for view in self.peers.values() if view.serves and view.live]
        if model is None:
            return nodes
        exact = [view for view in nodes if any(entry.id == model for entry in view.record.models)]
        return exact or [view for view in nodes if any(model in entry.aliases for entry in view.record.models)]

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

    def newest(self, views: Iterable[PeerView] | None = None) -> list[PeerView]:
        """The peers, the most recently proven first."""
        return sorted(self.peers.values() if views is None else views, key=self.age)

    def _wanted(self, record: NodeRecord, age: float) -> bool:
        """Everything that can be decided without the price of a signature."""
        known = self.peers.get(PeerId(record.peer_id))
        withdrawn = self._withdrawn.get(record.peer_id, (-1, 0.0))[0]
        return (
            record.peer_id != self.own
            and record.mesh == self._mesh
            and age < record.ttl
            and record.sequence > withdrawn
            and (known is None or record.sequence > known.record.sequence)
        )

    def _keep(self, record: NodeRecord, sealed: SealedRecord, learned: float) -> PeerView | None:
        view = self.peers.get(PeerId(record.peer_id))
        if view is None:
            return self._insert(PeerView(record, sealed, learned)) if self._has_room() else None
        changed = _content(view.record) != _content(record)
        view.record, view.sealed, view.learned = record, sealed, learned
        if changed and view.live:
            self._tell("changed", view)
        return view

    def _has_room(self) -> bool:
        """Make room for one more, if an unlinked peer can go."""
        if len(self.peers) < MAX_PEERS:
            return True
        unlinked = [known for known in self.peers.values() if known.link is None]
        if unlinked:
            del self.peers[min(unlinked, key=lambda known: known.expires).peer_id]
        return bool(unlinked)

    def _insert(self, view: PeerView) -> PeerView:
        self.peers[view.peer_id] = view
        return view

    def _withdraw(self, view: PeerView) -> None:
        if len(self._withdrawn) >= MAX_PEERS:
            del self._withdrawn[min(self._withdrawn, key=lambda peer_id: self._withdrawn[peer_id][1])]
        self._withdrawn[view.peer_id] = (view.record.sequence, self._clock() + view.record.ttl)

    def _tell(self, kind: Literal["joined", "left", "changed"], view: PeerView, reason: str = "") -> None:
        for listener in list(self._listeners):
            try:
                listener(RegistryEvent(kind, view, reason))
            except Exception:
                logger.exception("a listener of the registry failed on %s", kind)


def _content(record: NodeRecord) -> NodeRecord:
    """A record without what changes at every issue."""
    return msgspec.structs.replace(record, sequence=0, issued_at=0)
