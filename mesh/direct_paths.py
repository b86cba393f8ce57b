"""Looks for a direct path while a link goes over a relay: a second link takes its place, and it drains.

1. Both sides try. Who was dialled over the relay cannot be dialled itself, so it dials first: the other side is often reachable.
2. Tries back off up to `LONGEST` seconds; new addresses of the other side, or news of ourselves, start them anew. A direct link
   that lived less than `STEADY` seconds counts as a failed try.
3. Whatever fails, the relayed link stays as it is.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mesh.addresses import is_near, is_relayed, names
from mesh.backoff import Backoff
from mesh.errors import MeshError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.trail import Trail

FIRST_DIALLED = 0.2
"""Seconds before the first try of the side that was dialled."""
FIRST = 10.0
"""And of the one that dialled: it tried a moment ago."""
LONGEST = 300.0
STEADY = 60.0
MAX_PEERS = 1_024
"""Whose tries are remembered, the latest."""
WAY = "direct path"
"""In the trail."""

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Tries:
    backoff: Backoff
    addresses: frozenset[str] = frozenset()
    """Those that were dialled last."""
    news: trio.Event = field(default_factory=trio.Event)


class DirectPaths:
    """`dial` lives a link to its end, `announced` gives the addresses of a peer's newest record."""

    def __init__(
        self,
        links: Callable[[PeerId], Link | None],
        dial: Callable[[PeerId, Sequence[str], Callable[[Link], None]], Awaitable[None]],
        announced: Callable[[PeerId], Iterable[str]],
        trail: Trail,
        *,
        open_mesh: bool,
    ) -> None:
        self._link_of = links
        self._dial = dial
        self._announced = announced
        self._trail = trail
        self._open_mesh = open_mesh
        self._tries: dict[PeerId, _Tries] = {}

    def news(self, peer_id: PeerId | None = None) -> None:
        """A record of a peer came; None: we may be somewhere else ourselves. Never blocks."""
        if peer_id is None:
            due = list(self._tries.values())
        else:
            tries = self._tries.get(peer_id)
            due = [] if tries is None or self._addresses(peer_id) <= tries.addresses else [tries]
        for one in due:
            one.backoff.reset()
            one.news.set()

    def gone(self, link: Link) -> None:
        """A link ended: nobody waits for it any more."""
        if link.via is not None and (tries := self._tries.get(link.peer_id)) is not None:
            tries.news.set()

    async def seek(self, link: Link) -> None:
        """Try until a relayed link ended or another one took its place, and live that one."""
        tries = self._tries_for(link)
        while self._link_of(link.peer_id) is link:
            with trio.move_on_after(tries.backoff.next()):
                await tries.news.wait()
            tries.news = trio.Event()
            addresses = self._addresses(link.peer_id)
            if addresses and self._link_of(link.peer_id) is link and not link.leaving:
                tries.addresses = addresses
                await self._try(link.peer_id, addresses, tries)

    async def _try(self, peer_id: PeerId, addresses: frozenset[str], tries: _Tries) -> None:
        risen: list[float] = []

        def up(link: Link) -> None:
            risen.append(trio.current_time())
            self._trail.add(WAY, peer_id, f"found over {link.carrier}", found=True)

        try:
            await self._dial(peer_id, sorted(addresses), up)
        except MeshError as error:
            if not risen:
                self._trail.add(WAY, peer_id, "none yet, the link stays on its relay", found=True)
                logger.debug("no direct path to %s: %s", peer_id, error.message)
        if risen and trio.current_time() - risen[0] >= STEADY:
            tries.backoff.reset()

    def _addresses(self, peer_id: PeerId) -> frozenset[str]:
        found = (one for one in self._announced(peer_id) if names(one, peer_id) and not is_relayed(one))
        return frozenset(one for one in found if not self._open_mesh or is_near(one))

    def _tries_for(self, link: Link) -> _Tries:
        tries = self._tries.pop(link.peer_id, None)
        self._tries[link.peer_id] = tries = tries or _Tries(
            Backoff(first=FIRST if link.dialled else FIRST_DIALLED, longest=LONGEST)
        )
        if len(self._tries) > MAX_PEERS:
            del self._tries[next(iter(self._tries))]
        return tries
