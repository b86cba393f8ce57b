"""Asks the distributed hash table for peers that the mesh's other ways did not tell of.

1. The records of those in the table that are not known are fetched; then providers are looked for of models that have fewer than
   `FEW` nodes, and of those that `seek` names.
2. A record from the table is learned like any other, but not passed on before a link proves it: an old one costs a dial.
3. One turn fetches `MAX_FETCHED` records and looks for `MODELS_AT_ONCE` models with few nodes. What was asked for is
   asked for again after `LOOK_AGAIN` seconds at the earliest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.discovery.table import Table
    from mesh.identity import PeerId
    from mesh.messages.record import SealedRecord
    from mesh.registry import PeerView, Registry

TURN = 30.0
"""Seconds between two turns without news."""
FEW = 2
LOOK_AGAIN = 120.0
SEEK_AGAIN = 15.0
"""Seconds until the same model is looked for again, however many clients ask for it."""
MAX_SOUGHT = 32
"""Models that wait to be looked for."""
MODELS_AT_ONCE = 8
FETCHES_AT_ONCE = 4
MAX_FETCHED = 32
MAX_REMEMBERED = 2_000


class Finder:
    """`learn` takes in a record; it returns None when that is no news."""

    def __init__(self, table: Table, registry: Registry, learn: Callable[[SealedRecord], PeerView | None]) -> None:
        self._table = table
        self._registry = registry
        self._learn = learn
        self._sought: dict[str, None] = {}
        self._work = trio.Event()
        self._asked: dict[tuple[str, str], float] = {}
        self._found: dict[PeerId, None] = {}
        self.brought = 0
        """Peers that were linked after the table told of them."""

    def seek(self, model: str) -> None:
        """Look for a model soon. Never blocks."""
        if len(self._sought) < MAX_SOUGHT and not self._recently("model", model, SEEK_AGAIN):
            self._sought[model] = None
            self._work.set()

    def look(self) -> None:
        """There may be somebody new in the table."""
        self._work.set()

    def found(self, peer_id: PeerId) -> None:
        """The table told of this peer."""
        self._found[peer_id] = None
        if len(self._found) > MAX_REMEMBERED:
            del self._found[next(iter(self._found))]

    def joined(self, peer_id: PeerId) -> None:
        """A peer is linked."""
        if peer_id in self._found:
            del self._found[peer_id]
            self.brought += 1

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            with trio.move_on_after(TURN):
                await self._work.wait()
            self._work = trio.Event()
            if self._table.peers:
                await self._fetch(self._table.peers)
                for model in self._wanted():
                    self._note("model", model)
                    await self._fetch(await self._table.providers(model))

    def _wanted(self) -> list[str]:
        sought, self._sought = list(self._sought), {}
        few = [entry.id for entry in self._registry.catalog() if len(self._registry.nodes(entry.id)) < FEW]
        few = [model for model in few if model not in sought and not self._recently("model", model, LOOK_AGAIN)]
        return sought + few[:MODELS_AT_ONCE]

    async def _fetch(self, peer_ids: Iterable[PeerId]) -> None:
        """Learn the records of those who are not known."""
        known = self._registry.peers.keys() | {self._registry.own}
        wanted = [one for one in peer_ids if one not in known and not self._recently("record", one, LOOK_AGAIN)]
        waiting = iter(wanted[:MAX_FETCHED])

        async def fetch_in_turn() -> None:
            for peer_id in waiting:
                self._note("record", peer_id)
                sealed = await self._table.record(peer_id)
                if sealed is not None and self._learn(sealed) is not None:
                    self.found(peer_id)

        async with trio.open_nursery() as nursery:
            for _ in range(min(FETCHES_AT_ONCE, len(wanted))):
                nursery.start_soon(fetch_in_turn)

    def _recently(self, kind: str, name: str, seconds: float) -> bool:
        at = self._asked.get((kind, name))
        return at is not None and trio.current_time() - at < seconds

    def _note(self, kind: str, name: str) -> None:
        self._asked.pop((kind, name), None)
        self._asked[kind, name] = trio.current_time()
        if len(self._asked) > MAX_REMEMBERED:
            del self._asked[next(iter(self._asked))]
