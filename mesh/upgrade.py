"""Moves a link from libp2p to a direct connection: a second link takes its place, and it drains.

1. Only the side that dialled a link over libp2p asks, and only where both hellos have the feature `direct`. A relayed link is
   replaced by one over libp2p first (`direct_paths`), and drains in the same way.
2. The second link takes every new request. What runs on the first one ends there, on either side.
3. The first link ends once both sides have said `Drained`, each when nothing that it opened runs there any more; at the latest
   after `DRAIN_LIMIT`.
4. Whatever fails, the libp2p link stays as it is. There is one try after each of `DELAYS`; they count per process of the other
   side, so a direct link that dies young is not opened in a circle.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import trio

from mesh.errors import MeshError, Unavailable
from mesh.link.pulse import INTERVAL
from mesh.messages.link import Drained, Upgrade, UpgradeOffer

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.transport.base import Channel, Handler
    from mesh.transport.direct import DirectTransport

    Up = Callable[[Link], None]

    class Live(Protocol):
        """Lives a link on a channel to its end; `up` is called once both hellos are in."""

        async def __call__(self, channel: Channel, *, dialled: bool, up: Up) -> None: ...


FEATURE = "direct"
DELAYS = (0.2, 30.0, 300.0)
"""Seconds before each try. The first lets simultaneous dials settle on one link."""
OFFER_LIMIT = 5.0
DRAIN_LIMIT = 3_600.0
STEADY = 60.0
"""Seconds that a direct link must have lived not to count as a failed try."""
SETTLING = 10.0
"""Seconds that a dial may take, hello included."""
MAX_FAILURES = 1_024
"""Processes whose failed tries are remembered, the latest."""

logger = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Stage:
    """How far the replacement of one link is."""

    began: float = field(default_factory=trio.current_time)
    offer: UpgradeOffer = field(default_factory=UpgradeOffer)
    offered: trio.Event = field(default_factory=trio.Event)
    drained: trio.Event = field(default_factory=trio.Event)
    replaced: trio.Event = field(default_factory=trio.Event)


class Upgrades:
    """Of one peer. See the head of this file for the rules."""

    def __init__(
        self,
        direct: DirectTransport | None,
        live: Live,
        link_of: Callable[[PeerId], Link | None],
        settle: Up,
        start: Callable[..., None],
    ) -> None:
        """`settle` decides which link of a peer stays; `start` runs a task in the peer's nursery."""
        self._direct = direct
        self._live = live
        self._link_of = link_of
        self._settle = settle
        self._start = start
        self._stages: dict[Link, _Stage] = {}
        self._failures: dict[str, int] = {}

    @property
    def features(self) -> list[str]:
        """What our hello says."""
        return [FEATURE] if self._direct is not None else []

    @property
    def links(self) -> list[Link]:
        """All that are up, those that drain included."""
        return list(self._stages)

    async def listen(self, nursery: trio.Nursery, handler: Handler) -> None:
        """Start the direct listeners, if there are to be any. Raises Misconfigured when one cannot be bound."""
        if self._direct is not None:
            await nursery.start(self._direct.run, handler)

    def up(self, link: Link) -> None:
        """A link is up, whoever dialled it."""
        self._stages[link] = _Stage()

    def settling(self, link: Link) -> bool:
        """True while a dial that began before the link was up may still bring another one. Later ones mean that it is lost."""
        stage = self._stages.get(link)
        return stage is not None and trio.current_time() - stage.began < SETTLING

    def gone(self, link: Link) -> None:
        """A link ended."""
        stage = self._stages.pop(link, None)
        if stage is not None and link.carrier == "direct":
            self._remember(link.hello.instance, lived=trio.current_time() - stage.began)

    def hear(self, link: Link, message: Upgrade | UpgradeOffer | Drained) -> None:
        """The other side said something about the replacement of a link."""
        stage = self._stages.get(link)
        match message:
            case Upgrade():
                link.send(self._direct.offer(link.peer_id) if self._direct is not None else UpgradeOffer())
            case UpgradeOffer() if stage is not None:
                stage.offer = message
                stage.offered.set()
            case Drained() if stage is not None:
                stage.drained.set()
            case _:
                pass

    async def attend(self, channel: Channel, up: Up) -> None:
        """Live a link that we dialled, and upgrade it. Returns when it ended, or drains because a direct one took its place.

        Raises what `live` raises until then.
        """
        over = trio.Event()
        failures: list[MeshError] = []

        def risen(link: Link) -> None:
            self.up(link)
            self._stages[link].replaced = over
            up(link)
            self._start(self._upgrade, link)

        async def live() -> None:
            try:
                await self._live(channel, dialled=True, up=risen)
            except MeshError as error:
                failures.append(error)
            finally:
                over.set()

        self._start(live)
        await over.wait()
        if failures:
            raise failures[0]

    async def drain(self, link: Link) -> None:
        """Let a link whose place was taken finish what runs on it, then end it."""
        stage = self._stages.get(link)
        if stage is None:
            return
        stage.replaced.set()
        with trio.move_on_after(DRAIN_LIMIT):
            while link.in_flight and not link.closed.is_set():
                await _or_closed(link, trio.sleep, INTERVAL)
            link.send(Drained())
            await _or_closed(link, stage.drained.wait)
            await link.idle()
        await link.refuse("duplicate", "replaced by a direct link")

    async def _upgrade(self, link: Link) -> None:
        if self._direct is None or FEATURE not in link.hello.features or link.via is not None:
            return
        for _ in DELAYS:
            failures = self._failures.get(link.hello.instance, 0)
            await _or_closed(link, trio.sleep, DELAYS[min(failures, len(DELAYS) - 1)])
            if self._link_of(link.peer_id) is not link or link.leaving or await self._try(self._direct, link):
                return

    async def _try(self, direct: DirectTransport, link: Link) -> bool:
        """True when a direct link was up, and has ended."""
        up: list[Link] = []

        def risen(new: Link) -> None:
            up.append(new)
            self.up(new)
            self._settle(new)

        try:
            channel = await direct.dial(link.peer_id, await self._ask(link), seen_at=link.remote_address)
            await self._live(channel, dialled=True, up=risen)
        except MeshError as error:
            if not up:
                logger.info("no direct link to %s, it stays on libp2p: %s", link.peer_id, error.message)
                self._remember(link.hello.instance, lived=0.0)
        return bool(up)

    async def _ask(self, link: Link) -> UpgradeOffer:
        stage = self._stages.get(link, _Stage())
        stage.offered = trio.Event()
        link.send(Upgrade())
        with trio.move_on_after(OFFER_LIMIT):
            await _or_closed(link, stage.offered.wait)
        if not stage.offered.is_set() or not stage.offer.addresses:
            raise Unavailable("it offered none", code="no_direct")
        return stage.offer

    def _remember(self, instance: str, *, lived: float) -> None:
        failures = self._failures.pop(instance, 0)
        if lived < STEADY:
            self._failures[instance] = failures + 1
        if len(self._failures) > MAX_FAILURES:
            del self._failures[next(iter(self._failures))]


async def _or_closed(link: Link, wait: Callable[..., Awaitable[object]], *arguments: float) -> None:
    """Wait for something, or for the end of the link."""
    async with trio.open_nursery() as nursery:

        async def first(this: Callable[..., Awaitable[object]], *those: float) -> None:
            await this(*those)
            nursery.cancel_scope.cancel()

        nursery.start_soon(first, wait, *arguments)
        nursery.start_soon(first, link.closed.wait)
