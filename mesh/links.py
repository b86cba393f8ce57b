"""The links of one peer: who gets one, and which one stays when there are two.

1. Between two peers one link stays. Another `instance`, or one side dialled both: the newer. Else the one of the better carrier,
   unless it is old and the other side dials anew; else the smaller peer id's. `current` holds the one that stays; the other ends
   once it is idle.
2. An open mesh takes peers from loopback, link-local and private addresses only; a private one whoever proves its key.
3. Nothing that a link or a dial does ends the nursery that they run in.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import trio

from mesh.addresses import is_near
from mesh.dialler import MAX_DIALS
from mesh.errors import Busy, Conflict, Denied, MeshError
from mesh.link import Link
from mesh.link.refusal import refuse
from mesh.upgrade import Upgrades

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mesh.access import Access
    from mesh.identity import PeerId
    from mesh.link import LinkSide
    from mesh.transport.base import Carrier, Channel, Transport
    from mesh.transport.direct import DirectTransport

    Heard = Callable[[Link], None]

RANK: dict[Carrier, int] = {"relay": 0, "libp2p": 1, "memory": 1, "direct": 2}
"""The better carriers have the higher numbers."""
MAX_LINKS = 2_048
RETIRE_LIMIT = 30.0
"""Seconds that the second of two links may still carry what is in flight."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Watchers:
    """Who is told what becomes of links."""

    installed: Heard
    """It is the one link of its peer now."""
    accepted: Heard
    """The other side dialled it, and it is up."""
    gone: Heard
    """It ended, whether it was the one that stays or not."""


class Links:
    """See the head of this file for the rules."""

    def __init__(
        self,
        side: LinkSide,
        access: Access,
        transport: Transport,
        watchers: Watchers,
        *,
        own: PeerId,
        instance: str,
        direct: DirectTransport | None = None,
    ) -> None:
        """`side` says what ours brings to each link; `direct` is what links move to."""
        self.current: dict[PeerId, Link] = {}
        self.leaving = False
        self._side = replace(side, admit=self._admit)
        self._access = access
        self._transport = transport
        self._watchers = watchers
        self._own = own
        self._instance = instance
        self.upgrades = Upgrades(direct, self._live, self.get, self._settle, self.start)
        self._dials = trio.CapacityLimiter(MAX_DIALS)
        self._open = 0
        self._nursery: trio.Nursery | None = None

    def get(self, peer_id: PeerId) -> Link | None:
        """The link with a peer, unless it has ended."""
        link = self.current.get(peer_id)
        return None if link is None or link.closed.is_set() else link

    async def listen(self, nursery: trio.Nursery) -> None:
        """Take links in, in this nursery, from now on. Raises Misconfigured when a listener cannot be bound."""
        self._nursery = nursery
        await nursery.start(self._transport.run, self._accept)
        await self.upgrades.listen(nursery, self._accept)

    async def dial(self, peer_id: PeerId, addresses: Sequence[str], up: Heard) -> None:
        """Live a link that we open; returns when it ended or a direct one took its place. `up` is called when it is up.

        Raises MeshError when there was none.
        """

        def risen(link: Link) -> None:
            self._settle(link)
            up(link)

        if (objection := self._access.objection(peer_id)) is not None:
            raise objection
        async with self._dials:
            channel = await self._transport.dial(addresses)
        await self.upgrades.attend(channel, risen)

    def start(self, task: Callable[..., Awaitable[None]], *arguments: Link | str) -> None:
        """Run a task beside the links."""
        assert self._nursery is not None
        self._nursery.start_soon(task, *arguments)

    async def _accept(self, channel: Channel) -> None:
        try:
            await self._live(channel, dialled=False, up=self._accepted)
        except MeshError as error:
            logger.info("no link from %s at %s: %s", channel.peer_id, channel.remote_address, error.message)

    def _accepted(self, link: Link) -> None:
        self.upgrades.up(link)
        self._settle(link)
        self._watchers.accepted(link)

    async def _live(self, channel: Channel, *, dialled: bool, up: Heard) -> None:
        """Run a link from its channel to its end. Raises MeshError when it is refused or says no hello."""
        refusal = self._refusal(channel)
        if refusal is not None:
            await refuse(channel, refusal.code, refusal.message)
            raise refusal
        link = Link(channel, replace(self._side, up=up), dialled=dialled)
        self._open += 1
        try:
            await link.run()
        except Exception as error:
            if isinstance(error, MeshError):
                raise
            logger.exception("the link to %s failed on our side", channel.peer_id)
        finally:
            self._open -= 1
            self._gone(link)

    def _refusal(self, channel: Channel) -> MeshError | None:
        if (denial := self._access.refusal(channel.peer_id)) is not None:
            return denial
        if self._access.keyring is None and not is_near(channel.remote_address):
            text = "this mesh is open and takes peers from loopback, link-local and private addresses only"
            return Denied(text, code="open_mesh", status=403)
        if self.leaving:
            return Denied("this peer is leaving the mesh", code="leaving", status=403)
        if self._open >= MAX_LINKS:
            return Busy(f"this peer has {MAX_LINKS} links already", code="full")
        return None

    def _admit(self, link: Link) -> None:
        if link.peer_id == self._own:
            if link.hello.instance == self._instance:
                raise Conflict("this is our own address", code="same_identity")
            logger.warning("another process at %s uses our identity %s", link.remote_address, self._own)
            raise Conflict("another process uses this identity; give each its own --state-dir", code="same_identity")

    def _settle(self, link: Link) -> None:
        """Decide which link of this peer stays."""
        known = self.get(link.peer_id)
        if known is None:
            self._install(link)
        elif known.hello.instance != link.hello.instance:
            logger.warning("peer %s runs twice or was restarted: the newer of its links stays", link.peer_id)
            self._install(link)
            self.start(
                known.refuse, "replaced", "a newer process with the same identity is linked; give each its own --state-dir"
            )
        elif self._stays(known, link):
            self.start(self._retire, link)
        else:
            link.load = link.load or dict(known.load)
            self._install(link)
            self.start(self.upgrades.drain if RANK[link.carrier] > RANK[known.carrier] else self._retire, known)

    def _stays(self, known: Link, new: Link) -> bool:
        if known.dialled == new.dialled:
            return False
        if known.carrier != new.carrier:
            return RANK[known.carrier] > RANK[new.carrier] and self.upgrades.settling(known)
        return known.dialled == (self._own < known.peer_id)

    def _install(self, link: Link) -> None:
        self.current[link.peer_id] = link
        self._watchers.installed(link)
        logger.info("linked with %s %s (%s) over %s", link.record.role, link.record.name, link.peer_id, link.carrier)

    def _gone(self, link: Link) -> None:
        if self.current.get(link.peer_id) is link:
            del self.current[link.peer_id]
            logger.info("the link to %s ended: %s", link.peer_id, link.reason or "our side stopped")
        self.upgrades.gone(link)
        self._watchers.gone(link)

    async def _retire(self, link: Link) -> None:
        """End the second of two links once nothing is in flight on it; the other side may still be about to use it."""
        with trio.move_on_after(RETIRE_LIMIT):
            await trio.sleep(1)
            await link.idle()
        await link.refuse("duplicate", "another link between the two peers stays")
