"""Peer exchange: who tells whom about whom, in pieces that fit a frame.

1. A node needs no records of other nodes unless it asks them; everybody else hears of everybody: n nodes and g gateways move
   n x g records. Nobody needs records of clients.
2. Nobody is told about itself, unless we hold a newer record of it than its hello had: it then knows that its clock went back.
3. A change waits `WINDOW` seconds for others, and goes to everybody but the one it came from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from mesh.messages.link import Records

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.messages.record import Role
    from mesh.registry import PeerView, Registry

MAX_RECORDS = 1_000
"""In one exchange."""
CHUNK = 240 * 1024
"""Bytes of records in one message: under the writer's frame target."""
WINDOW = 0.1
ASKS = "asks"
"""Stands among the features in the hello of a peer that asks nodes, whatever its role."""


class Exchange:
    """Spreads what the registry learns over the links that there are."""

    def __init__(self, registry: Registry, links: Callable[[], Iterable[Link]]) -> None:
        self._registry = registry
        self._links = links
        self._news: dict[PeerId, tuple[PeerView, PeerId]] = {}
        self._work = trio.Event()

    def greet(self, link: Link) -> None:
        """Tell a new link about everybody whom it should know, the freshest first."""
        views = (view for view in self._registry.peers.values() if _interesting(view, link))
        self._send(link, self._registry.newest(views, MAX_RECORDS))

    def spread(self, view: PeerView, source: PeerId) -> None:
        """A record changed, and `source` told us."""
        self._news[view.peer_id] = (view, source)
        self._work.set()

    async def run(self) -> None:
        """Pass changes on until cancelled."""
        while True:
            await self._work.wait()
            await trio.sleep(WINDOW)
            self._work = trio.Event()
            news, self._news = self._news, {}
            for link in list(self._links()):
                self._send(link, [view for view, source in news.values() if source != link.peer_id and _interesting(view, link)])

    def _send(self, link: Link, views: list[PeerView]) -> None:
        for chunk in _chunks(views):
            ages = [int(self._registry.age(view)) for view in chunk]
            link.send(Records([view.sealed for view in chunk], ages))


def _interesting(view: PeerView, link: Link) -> bool:
    if view.peer_id == link.peer_id:
        return view.sequence > link.record.sequence
    return _cares(link.record.role, view.role, asks=ASKS in link.hello.features)


def _cares(listener: Role, subject: Role, *, asks: bool) -> bool:
    return subject != "client" and (asks or not listener == subject == "node")


def _chunks(views: list[PeerView]) -> Iterator[list[PeerView]]:
    chunk: list[PeerView] = []
    size = 0
    for view in views:
        bytes_of = len(view.sealed.payload) + len(view.sealed.signature) + 64
        if chunk and size + bytes_of > CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append(view)
        size += bytes_of
    if chunk:
        yield chunk
