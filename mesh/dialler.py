"""Keeps links to whom we want to be linked with: dials, waits for the end, dials again.

1. One task per wanted peer, at most `MAX_TARGETS` of them besides the bootstrap peers; at most `MAX_DIALS` dials at once.
2. Retries are jittered and back off, for ever for a bootstrap peer, else until nobody vouches for the target any more.
3. A peer that is linked already, whoever dialled, is not dialled.
4. News about a target (a new record, a new sighting) ends its wait.
5. A peer whose link was lost is tried every few seconds for a while: a network that was cut and mended should be whole soon.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mesh.access import REFUSALS
from mesh.backoff import LONGEST, Backoff
from mesh.errors import Conflict, Denied, MeshError
from mesh.trail import brief

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence

    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.trail import Trail

MAX_TARGETS = 1_000
MAX_DIALS = 32
STEADY = 5.0
"""Seconds that a link must have lived for its end to count as the first failure."""

RETURNING = 300.0
"""Seconds after the loss of a link of which rule 5 speaks. A restarted machine or switch is back by then."""
RETURN_WAIT = 4.0
"""The longest wait between two tries then: with a dial that hangs at the wrong moment, six seconds until the link is back."""

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Target:
    """Somebody whom we want to be linked with. `until` is on trio's clock; None = for ever."""

    peer_id: PeerId
    way: str
    addresses: list[str]
    until: float | None = None
    news: trio.Event = field(default_factory=trio.Event)
    tried: trio.Event = field(default_factory=trio.Event)
    backoff: Backoff = field(default_factory=Backoff)
    refusal: Denied | None = None
    """Why the last try was refused, if it was."""
    failing: bool = False
    """Its last try came to nothing."""
    lost: float = -math.inf
    """When a link to it that was no passing one ended, on trio's clock."""

    @property
    def label(self) -> str:
        """How logs and the trail name it."""
        return self.addresses[0] if self.addresses else self.peer_id


class Dialler:
    """`connect` dials a target, sets its `tried` when the link is up, and lives the link to its end.

    It raises MeshError when there is no link or it was refused.
    """

    def __init__(
        self,
        connect: Callable[[Target], Awaitable[None]],
        link_of: Callable[[PeerId], Link | None],
        trail: Trail,
        failed: Callable[[], None] = lambda: None,
    ) -> None:
        """`failed` is told when a target's tries begin to come to nothing."""
        self._told_of_failure = failed
        self._connect = connect
        self._link_of = link_of
        self._trail = trail
        self._targets: dict[PeerId, Target] = {}
        self._stopped = False

    def stop(self) -> None:
        """Dial nobody any more. Links that are up stay."""
        self._stopped = True
        for target in self._targets.values():
            target.news.set()

    def retry(self) -> None:
        """Try everybody again soon: what made others refuse us may be gone."""
        for target in self._targets.values():
            target.backoff.reset()
            target.news.set()

    def drop(self, peer_id: PeerId) -> bool:
        """Dial this peer no more, until somebody wants it again. False when nobody did, or it is a bootstrap peer."""
        target = self._targets.get(peer_id)
        if target is None or target.until is None:
            return False
        target.until = 0.0
        target.news.set()
        return True

    @property
    def wanted(self) -> Collection[PeerId]:
        """Everybody whom a link is being kept to."""
        return self._targets.keys()

    def target(self, peer_id: PeerId) -> Target | None:
        """What is being kept for this peer; None when nobody wants a link to it."""
        return self._targets.get(peer_id)

    def want(self, nursery: trio.Nursery, peer_id: PeerId, way: str, addresses: Sequence[str], until: float) -> None:
        """Keep a link to a peer until a time on trio's clock. News about a known target refresh it."""
        target = self._targets.get(peer_id)
        if target is not None:
            self._refresh(target, addresses, until)
        elif addresses and len(self._targets) < MAX_TARGETS and not self._stopped:
            self._targets[peer_id] = target = Target(peer_id, way, list(addresses), until)
            nursery.start_soon(self._keep, target)

    def hold(self, nursery: trio.Nursery, peer_id: PeerId, addresses: Sequence[str]) -> Target:
        """Keep a link to a bootstrap peer for ever. The target's `tried` is set once it was tried."""
        self._targets[peer_id] = target = Target(peer_id, "bootstrap", list(addresses))
        nursery.start_soon(self._keep, target)
        return target

    async def hold_all(self, nursery: trio.Nursery, bootstrap: Mapping[PeerId, Sequence[str]]) -> None:
        """Keep links to the bootstrap peers for ever. Returns once each was tried.

        Raises Denied when none took us and one refused us in a way that only an operator can change.
        """
        targets = [self.hold(nursery, peer_id, addresses) for peer_id, addresses in bootstrap.items()]
        for target in targets:
            await target.tried.wait()
        refusals = [target.refusal for target in targets if target.refusal and target.refusal.code in REFUSALS]
        if refusals and not any(self._link_of(target.peer_id) for target in targets):
            raise refusals[0]

    def _refresh(self, target: Target, addresses: Sequence[str], until: float) -> None:
        if target.until is None:
            return
        target.until = max(target.until, until)
        fresh = [address for address in addresses if address not in target.addresses]
        if fresh:
            # The newest first; the old ones stay as a second chance, within bounds.
            target.addresses = [*addresses, *(old for old in target.addresses if old not in addresses)][:16]
            target.backoff.reset()
            target.news.set()

    def _wanted(self, target: Target) -> bool:
        return not self._stopped and (target.until is None or trio.current_time() < target.until)

    async def _keep(self, target: Target) -> None:
        try:
            while self._wanted(target):
                link = self._link_of(target.peer_id)
                if link is not None:
                    target.tried.set()
                    await self._outlive(link, target)
                    continue
                await self._try(target)
                await self._pause(target)
        finally:
            self._targets.pop(target.peer_id, None)
            target.tried.set()

    async def _outlive(self, link: Link, target: Target) -> None:
        began = trio.current_time()
        await link.closed.wait()
        await trio.lowlevel.checkpoint()
        self._lost(target, lived=trio.current_time() - began)

    def _lost(self, target: Target, *, lived: float) -> None:
        if lived >= STEADY:
            target.lost = trio.current_time()
            target.backoff.reset()

    async def _try(self, target: Target) -> None:
        began = trio.current_time()
        target.refusal = None
        try:
            await self._connect(target)
        except Conflict as error:
            if error.code != "duplicate":
                self._failed(target, error, for_long=True)
        except Denied as error:
            target.refusal = error
            self._failed(target, error, for_long=True)
        except MeshError as error:
            self._failed(target, error, for_long=False)
        else:
            self._lost(target, lived=trio.current_time() - began)
        target.tried.set()

    def _failed(self, target: Target, error: MeshError, *, for_long: bool) -> None:
        if not target.failing:
            target.failing = True
            self._told_of_failure()
        if for_long:
            target.lost = -math.inf
            target.backoff.give_up_for_long()
        news = self._trail.add(target.way, target.label, error.message, code=error.code)
        matters = for_long or target.way == "bootstrap"
        level = logging.DEBUG if not news else logging.WARNING if matters else logging.INFO
        logger.log(level, "no link to %s (%s): %s", target.label, target.way, brief(target.label, error.message))

    async def _pause(self, target: Target) -> None:
        if self._wanted(target):
            returning = trio.current_time() - target.lost < RETURNING
            with trio.move_on_after(target.backoff.next(at_most=RETURN_WAIT if returning else LONGEST)):
                await target.news.wait()
            target.news = trio.Event()
