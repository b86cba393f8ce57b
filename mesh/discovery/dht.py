"""What a peer does with the distributed hash table: keep it filled, publish itself, find back. `finder` asks it for others.

1. Linked peers are greeted, and so get into the table; that is refreshed when somebody new is in it, and now and then.
2. Our record and the models that we serve are published when they changed or somebody new is in the table, and every `PUBLISH`
   seconds: what others keep for us expires.
3. At the start the table greets those known from before. Who has no link for `LONELY` seconds dials `SEEDS_AT_ONCE` of those in
   the table, or else of those known from before; a bootstrap peer does so until it is linked with one, for `RETURN` seconds,
   whoever comes meanwhile: newcomers know nobody.
4. Everything here is paced and bounded; what others say only ever leads to a dial.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import trio

from mesh.addresses import is_near
from mesh.discovery.finder import Finder
from mesh.discovery.seeds import Seeds
from mesh.discovery.table import Gate, Reach
from mesh.record import read_unchecked

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mesh.access import Access
    from mesh.discovery.table import TableFactory
    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.messages.record import NodeRecord, Role, SealedRecord
    from mesh.registry import Registry, RegistryEvent
    from mesh.trail import Trail

WINDOW = 1.0
"""Seconds that news wait for others: links come in bunches, and a program has more important things to do when it starts."""
LOOK = 2.0
"""Seconds between two looks at what needs no answer at once."""
REFRESH = 300.0
SMALL_REFRESH = 60.0
"""With fewer than `SMALL` peers in the table."""
SMALL = 8
SOON = 15.0
"""Seconds between two refreshes, and between two publications, however much is new."""
PUBLISH = 100.0
"""Seconds; others keep a record for three times as long."""
PROVIDED_AT_ONCE = 8
PROVIDE_PAUSE = 10.5
"""Others take ten of these from a peer in ten seconds."""
MAX_GREETED = 16
LONELY = 3.0
RETURN = 120.0
SEEDS_AT_ONCE = 3
DIAL_AGAIN = 30.0
"""Seconds until the same one is dialled again, to find back."""
WAY = "dht"
TARGET = "the table"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class DhtSettings:
    """`table` makes the table; `seeds` is the file of peers to come back through."""

    table: TableFactory
    seeds: Path | None = None


class Member(Protocol):
    """What it needs of the peer that it works for."""

    @property
    def peer_id(self) -> PeerId: ...
    @property
    def mesh(self) -> str: ...
    @property
    def role(self) -> Role: ...
    @property
    def asks(self) -> bool: ...
    @property
    def leaving(self) -> bool: ...
    @property
    def links(self) -> Mapping[PeerId, Link]: ...
    @property
    def registry(self) -> Registry: ...
    @property
    def trail(self) -> Trail: ...
    @property
    def sealed(self) -> SealedRecord: ...


class Dht:
    """See the head of this file."""

    def __init__(self, member: Member, access: Access, reach: Reach, settings: DhtSettings) -> None:
        self._member = member
        self._access = access
        self._want = reach.want
        self._open = access.keyring is None
        self._table = settings.table(
            Gate(
                own=member.peer_id,
                mesh=member.mesh,
                serves=member.role != "client",
                admits=self._admits,
                usable=lambda address: not self._open or is_near(address),
                known=self._known,
            )
        )
        self._seeds = Seeds(settings.seeds, member.mesh)
        self._met = trio.Event()
        self._finder = Finder(self._table, member.registry, reach.learn)
        self._dialled: dict[PeerId, float] = {}
        self._published: tuple[float, NodeRecord, frozenset[PeerId]] | None = None

    @property
    def size(self) -> int:
        """Peers in the table."""
        return len(self._table.peers)

    def seek(self, model: str) -> None:
        """Somebody asks for a model that no linked node serves. Never blocks; if it is found, its nodes will be linked."""
        self._finder.seek(model)

    async def run(self) -> None:
        """Work until cancelled."""
        unsubscribe = self._member.registry.subscribe(self._hear)
        # Whoever was linked before.
        self._met.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._table.run)
                nursery.start_soon(self._greet_seeds)
                nursery.start_soon(self._keep_table)
                nursery.start_soon(self._look)
                if self._member.role != "client":
                    nursery.start_soon(self._publish)
                if self._member.asks:
                    nursery.start_soon(self._finder.run)
        finally:
            unsubscribe()

    # Who may take part

    def _admits(self, peer_id: PeerId, address: str | None) -> bool:
        if self._access.refusal(peer_id) is not None:
            return False
        if self._open:
            return address is None or is_near(address)
        # A link is the proof of the key.
        link = self._member.links.get(peer_id)
        return link is not None and not link.closed.is_set()

    def _known(self, peer_id: PeerId) -> list[str]:
        view = self._member.registry.peers.get(peer_id)
        return [] if view is None else view.record.addresses

    # The table

    def _hear(self, event: RegistryEvent) -> None:
        peer_id = event.peer.peer_id
        if event.kind == "joined" and event.peer.record.role != "client":
            self._finder.joined(peer_id)
            self._table.meet(peer_id, event.peer.record.addresses)
            self._met.set()
        elif event.kind == "left":
            self._table.lost(peer_id)

    async def _keep_table(self) -> None:
        last, due = -SOON, trio.current_time() + SMALL_REFRESH
        while True:
            with trio.move_on_at(due):
                await self._met.wait()
                await trio.sleep(WINDOW)
            self._met = trio.Event()
            now = trio.current_time()
            if await self._greet():
                due = max(now, last + SOON)
            if now >= due and self._table.peers:
                await self._table.refresh()
                last = trio.current_time()
                self._finder.look()
            if now >= due:
                due = trio.current_time() + (REFRESH if self.size >= SMALL else SMALL_REFRESH)

    async def _greet_seeds(self) -> None:
        seeds = list(self._seeds.peers.items())[:MAX_GREETED]
        for peer_id, addresses in seeds:
            self._table.meet(peer_id, addresses)
            if await self._table.greet(peer_id):
                self._met.set()

    async def _greet(self) -> bool:
        """Rule 1. True when somebody new is in the table."""
        inside = set(self._table.peers)
        views = self._member.registry.peers.values()
        linked = [view for view in views if view.live and view.record.role != "client" and view.peer_id not in inside]
        linked.sort(key=lambda view: view.record.role != "bootstrap")
        strangers = [view.peer_id for view in linked if view.peer_id != self._member.peer_id][:MAX_GREETED]
        return any([await self._table.greet(peer_id) for peer_id in strangers])

    async def _look(self) -> None:
        started = lonely_since = trio.current_time()
        before = frozenset(self._seeds.peers) if self._member.role == "bootstrap" else frozenset()
        while True:
            await trio.sleep(LOOK)
            now = trio.current_time()
            self._report()
            if self._member.leaving:
                continue
            if self._member.links:
                lonely_since = now
                self._seeds.see(self._present())
            returned = not before or bool(before & self._member.links.keys()) or now - started > RETURN
            if now - lonely_since >= LONELY or not returned:
                self._find_back(now)

    def _report(self) -> None:
        size, brought = self.size, self._finder.brought
        outcome = (
            f"has {size} in its table and brought {brought} of those that were linked" if size else "has nobody in its table"
        )
        if outcome != self._member.trail.outcome(WAY, TARGET):
            self._member.trail.add(WAY, TARGET, outcome, code="" if size else "empty")

    def _present(self) -> dict[PeerId, list[str]]:
        """Whom to come back through: linked peers, then those in the table."""
        linked = [view for view in self._member.registry.peers.values() if view.live and view.record.role != "client"]
        others = {view.peer_id: view.record.addresses for view in linked if view.peer_id != self._member.peer_id}
        return others | {peer_id: self._table.addresses(peer_id) for peer_id in self._table.peers if peer_id not in others}

    def _find_back(self, now: float) -> None:
        """Rule 4."""
        inside = {peer_id: self._table.addresses(peer_id) for peer_id in self._table.peers}
        candidates = inside | {one: addresses for one, addresses in self._seeds.peers.items() if one not in inside}
        self._dialled = {peer_id: at for peer_id, at in self._dialled.items() if now - at < DIAL_AGAIN}
        fresh = [peer_id for peer_id in candidates if peer_id not in self._dialled and peer_id not in self._member.links]
        for peer_id in fresh[:SEEDS_AT_ONCE]:
            logger.info("no link leads to those known from before; trying %s", peer_id)
            self._dialled[peer_id] = now
            self._finder.found(peer_id)
            self._want(peer_id, WAY, candidates[peer_id], now + DIAL_AGAIN)

    # Ourselves

    async def _publish(self) -> None:
        while True:
            await trio.sleep(LOOK)
            record = read_unchecked(self._member.sealed)
            peers = frozenset(self._table.peers)
            if peers and not self._member.leaving and self._due(record, peers):
                await self._table.publish(self._member.sealed)
                await self._provide(record)
                self._published = (trio.current_time(), record, peers | frozenset(self._table.peers))

    def _due(self, record: NodeRecord, peers: frozenset[PeerId]) -> bool:
        if self._published is None:
            return True
        at, said, told = self._published
        passed = trio.current_time() - at
        news = (record.models, record.addresses) != (said.models, said.addresses) or bool(peers - told)
        return passed >= PUBLISH or (news and passed >= SOON)

    async def _provide(self, record: NodeRecord) -> None:
        names = list(dict.fromkeys(name for entry in record.models for name in (entry.id, *entry.aliases)))
        for index, name in enumerate(names):
            if index and index % PROVIDED_AT_ONCE == 0:
                await trio.sleep(PROVIDE_PAUSE)
            await self._table.provide(name)
