"""One process in the mesh: its transport, links, registry and ways to find others.

1. Who asks (a gateway, a client) dials the best of those that serve models: nodes, and gateways with foreign services. Everybody
   keeps a link to each bootstrap address; two nodes need no link.
2. Nothing that a link, a dial or a way of hearing does ends `run`.
3. A bootstrap peer that refuses us at the start, for the key or by a list, ends `run`, unless another one took us.
"""

from __future__ import annotations

import logging
import secrets
from typing import TYPE_CHECKING

import trio

from mesh.addresses import by_peer, names
from mesh.best_links import BestLinks, Hands
from mesh.dialler import Dialler, Target
from mesh.discovery.dht import Dht
from mesh.discovery.table import Reach
from mesh.errors import Misconfigured
from mesh.exchange import ASKS, MAX_RECORDS, Exchange
from mesh.hearing import Hearing
from mesh.key_spread import KeySpread
from mesh.link import LinkSide
from mesh.links import Links, Watchers
from mesh.managing import Managing
from mesh.measuring import Measuring
from mesh.messages.link import Drained, Heartbeat, Hello, Keys, Leave, Records, Upgrade, UpgradeOffer
from mesh.messages.manage import Manage, Managed
from mesh.messages.metrics import Measure, Measured
from mesh.messages.reachability import DialBack, DialedBack
from mesh.messages.relay import Incoming, Release, Reserve, Reserved
from mesh.nat import Nat
from mesh.own_record import OwnRecord
from mesh.peer_settings import PeerSettings
from mesh.record import RECORD_TTL
from mesh.registry import Registry
from mesh.sightings import mdns
from mesh.trail import Trail, how_to_join

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.discovery.dht import DhtSettings
    from mesh.identity import PeerId
    from mesh.link import Control, Link
    from mesh.messages.link import ModelLoad
    from mesh.messages.record import ModelEntry, Role, SealedRecord
    from mesh.registry import PeerView
    from mesh.service import InferenceService
    from mesh.sightings import DiscoveryFactory, Sighting
    from mesh.transport.base import Transport
    from mesh.transport.direct import DirectTransport

ISOLATED_AFTER = 10.0
"""Seconds alone until the log says why."""
ADDRESS_LOOK = 2.0
"""Seconds between two looks at our own addresses: interfaces come and go."""
FAREWELL_LIMIT = 1.0
BREATH = 16
"""Signatures checked between two chances for other tasks: about a millisecond."""

logger = logging.getLogger(__name__)

__all__ = ["Peer", "PeerSettings"]


class Peer:
    """See the head of this file for the rules."""

    def __init__(
        self,
        settings: PeerSettings,
        transport: Transport,
        service: InferenceService | None = None,
        *,
        discovery: Mapping[str, DiscoveryFactory] | None = None,
        direct: DirectTransport | None = None,
        dht: DhtSettings | None = None,
    ) -> None:
        """`discovery`: more ways of hearing; `direct`: what links move to. Raises Misconfigured for a bad bootstrap address."""
        self.settings = settings
        self.identity = settings.identity
        self.instance = secrets.token_hex(8)
        self.registry = Registry(settings.identity.peer_id, mesh=settings.mesh)
        self.trail = Trail()
        self.measuring = Measuring()
        self.managing = Managing()
        self._transport = transport
        ways = ({"mdns": mdns} if settings.mdns else {}) | dict(discovery or {})
        self._hearing = Hearing(ways, self.trail, self._sighted)
        self._bootstrap = by_peer(settings.bootstrap)
        self._load: dict[str, ModelLoad] = {}
        self._own = OwnRecord(settings)
        side = LinkSide(
            hello=self._hello, credentials=settings.credentials, service=service, load=lambda: self._load, heard=self._hear
        )
        watchers = Watchers(installed=self._installed, accepted=self._accepted, gone=self._gone)
        self._links = Links(side, settings.access, transport, watchers, own=self.peer_id, instance=self.instance, direct=direct)
        self._nat = Nat(settings, transport, self._links, self.registry, self.trail, want=self._want, changed=self._issue_again)
        self._exchange = Exchange(self.registry, lambda: self.links.values())
        self._keys = KeySpread(settings.access.keyring, self.links.values, lambda: self._dialler.retry())
        self._asks = settings.role in ("gateway", "client") if settings.asks is None else settings.asks
        self._dialler = Dialler(self._connect, self._links.get, self.trail, lambda: self._best.changed())
        close = lambda peer_id: self._links.start(self.links[peer_id].close, "others serve the same")  # noqa: E731
        forbidden = lambda peer_id: settings.access.refusal(peer_id) is not None  # noqa: E731
        hands = Hands(dialler=self._dialler, dial=self._dial_node, close=close, forbidden=forbidden)
        self._best = BestLinks(self.registry, hands, own=self.peer_id, limit=settings.links_per_model)
        self._nursery: trio.Nursery | None = None
        self._dht = None if dht is None else Dht(self, settings.access, Reach(learn=self._learn_found, want=self._want), dht)

    @property
    def peer_id(self) -> PeerId:
        """Ours."""
        return self.identity.peer_id

    @property
    def mesh(self) -> str:
        """The name of the mesh."""
        return self.settings.mesh

    @property
    def role(self) -> Role:
        """Ours."""
        return self.settings.role

    @property
    def asks(self) -> bool:
        """True when we dial nodes, to ask them."""
        return self._asks

    @property
    def addresses(self) -> list[str]:
        """Where others reach us: full multiaddrs, loopback first. Known once `run` has started."""
        return self._transport.addresses

    @property
    def links(self) -> dict[PeerId, Link]:
        """The one link with each peer that is linked."""
        return self._links.current

    @property
    def leaving(self) -> bool:
        """True once `leave` was called."""
        return self._links.leaving

    @property
    def every_link(self) -> list[Link]:
        """Those in `links`, and those that only finish what runs on them."""
        return self._links.upgrades.links

    @property
    def nat(self) -> Nat:
        """Whether others can dial us, over which relays they reach us, whom we relay."""
        return self._nat

    @property
    def sealed(self) -> SealedRecord:
        """Our own record as it was issued last."""
        return self._own.sealed

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Be in the mesh until cancelled. `started()` when listeners are bound and each bootstrap address was tried once.

        Raises Misconfigured when a listener cannot be bound, Denied by rule 3.
        """
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._nat.run)
            await self._links.listen(nursery)
            self._issue()
            nursery.start_soon(self._exchange.run)
            nursery.start_soon(self._keep_time)
            nursery.start_soon(self._follow_addresses)
            nursery.start_soon(self._keys.run)
            nursery.start_soon(self._hear_others)
            nursery.start_soon(self._explain_isolation)
            if self._asks:
                self.registry.subscribe(lambda _event: self._best.changed())
                nursery.start_soon(self._best.run)
            if self._dht is not None:
                nursery.start_soon(self._dht.run)
            await self._dialler.hold_all(nursery, self._bootstrap)
            task_status.started()

    def announce(self, models: list[ModelEntry], load: dict[str, ModelLoad]) -> None:
        """Say what we serve and how busy it is. Never blocks; everybody linked hears at once when something important changed.

        Raises Misconfigured when the record gets too large.
        """
        states_changed = {name: one.state for name, one in load.items()} != {name: one.state for name, one in self._load.items()}
        self._load = dict(load)
        if models != self._own.models:
            self._change(models)
        elif not states_changed:
            return
        for link in self.links.values():
            link.beat()

    async def leave(self, reason: str = "the program stops") -> None:
        """Say Leave on every link, stop dialling, accepting and announcing. Links stay, for what is in flight.

        Blocks until it is said, at most FAREWELL_LIMIT.
        """
        self._links.leaving = True
        self._dialler.stop()
        self._hearing.stop()
        with trio.move_on_after(FAREWELL_LIMIT):
            async with trio.open_nursery() as nursery:
                for link in self.links.values():
                    link.send(Leave(reason))
                    nursery.start_soon(link.flush)

    def seek(self, model: str) -> None:
        """Look beyond those we know for nodes that serve a model. Never blocks; what is found gets links."""
        if self._dht is not None:
            self._dht.seek(model)

    def explain(self) -> list[str]:
        """Sentences that say why there is nobody, or nobody to ask, and what to type next; empty when all is well."""
        if not self.links:
            return self.trail.explain()
        if not self._asks or self.registry.nodes():
            return self._nat.explain()
        private = self.settings.access.keyring is not None
        nodes = [view for view in self.registry.peers.values() if view.serves]
        forbidden = sum(self.settings.access.refusal(view.peer_id) is not None for view in nodes)
        start = how_to_join(self.mesh, self.addresses, private=private)
        return self.trail.explain_no_node(len(self.links), start, heard=len(nodes), forbidden=forbidden)

    async def close(self, reason: str = "the program stops") -> None:
        """Leave, then end every link in good order: a connection that is cut instead takes back what the other side has not read.

        Blocks for as long as Link.close may.
        """
        if not self.leaving:
            await self.leave(reason)
        async with trio.open_nursery() as nursery:
            for link in self.every_link:
                nursery.start_soon(link.close, reason)

    # Our own record

    def _hello(self) -> Hello:
        features = [
            *self._links.upgrades.features,
            *self._nat.features,
            *self.measuring.features,
            *self.managing.features,
            *([ASKS] if self._asks else []),
        ]
        return Hello(mesh=self.mesh, instance=self.instance, record=self._own.sealed, features=features)

    def _issue(self) -> None:
        """A new record, to everybody linked."""
        self._own.addresses, self._own.relay = self._nat.announced(), self._nat.relays
        self._push(self._own.issue())

    def _issue_again(self) -> None:
        try:
            self._issue()
        except Misconfigured as error:
            # Our addresses changed and no longer fit: what others hold expires, and our links prove us meanwhile.
            logger.error("%s", error.message)  # noqa: TRY400 - the message says all

    def _change(self, models: list[ModelEntry]) -> None:
        before, self._own.models = self._own.models, list(models)
        try:
            self._push(self._own.issue())
        except Misconfigured:
            self._own.models = before
            raise

    def _push(self, sealed: SealedRecord) -> None:
        for link in self.links.values():
            link.send(Records([sealed]))

    async def _follow_addresses(self) -> None:
        """Tell everybody when our addresses change, and try anew to reach those whom we could not."""
        known = self.addresses
        while not self.leaving:
            await trio.sleep(ADDRESS_LOOK)
            if (now := self.addresses) == known:
                continue
            gained, lost = ([one for one in these if one not in those] for these, those in ((now, known), (known, now)))
            logger.info("our addresses changed: gained %s; lost %s", gained, lost)
            known = now
            self._issue_again()
            self._dialler.retry()

    async def _keep_time(self) -> None:
        while True:
            await trio.sleep(RECORD_TTL / 3)
            self.registry.expire()
            if not self.leaving:
                self._issue_again()

    # Links

    async def _connect(self, target: Target) -> None:
        def up(_link: Link) -> None:
            target.tried.set()
            target.failing = False
            self.trail.add(target.way, target.label, "is linked", found=True)

        await self._links.dial(target.peer_id, target.addresses, up)

    def _accepted(self, link: Link) -> None:
        self.trail.add("inbound", link.peer_id, "is linked", found=True)

    def _installed(self, link: Link) -> None:
        self.registry.linked(link)
        self._learned(self.registry.peers[link.peer_id], link.peer_id)
        self._nat.up(link)
        self._keys.greet(link)
        self._exchange.greet(link)

    def _gone(self, link: Link) -> None:
        self.registry.unlinked(link)
        self._nat.gone(link)

    # What links and others say

    async def _hear(self, link: Link, message: Control) -> None:
        current = self.links.get(link.peer_id) is link
        match message:
            case Records():
                await self._learn_all(link, message)
            case Keys():
                self._keys.hear(message)
            case Heartbeat() if current:
                self.registry.beaten(link)
            case Leave() if current:
                logger.info("%s leaves the mesh: %.200s", link.peer_id, message.reason)
                self.registry.forget(link.peer_id, message.reason[:200])
                self._dialler.drop(link.peer_id)
            case Upgrade() | UpgradeOffer() | Drained():
                self._links.upgrades.hear(link, message)
            case DialBack() | DialedBack() | Reserve() | Reserved() | Release() | Incoming():
                self._nat.hear(link, message)
            case Measure() | Measured():
                self.measuring.hear(link, message)
            case Manage() | Managed() if self._nursery is not None:
                self.managing.hear(link, message, self._nursery)
            case _:
                pass

    async def _learn_all(self, link: Link, message: Records) -> None:
        for index, sealed in enumerate(message.records[:MAX_RECORDS]):
            age = message.ages[index] if index < len(message.ages) else 0
            self._learn(link, sealed, age)
            if index % BREATH == BREATH - 1:
                await trio.lowlevel.checkpoint()

    def _learn(self, link: Link, sealed: SealedRecord, age: float) -> None:
        view = self.registry.learn(sealed, age=age)
        if view is not None:
            self._learned(view, link.peer_id)
        elif self._own.outgrows(sealed):
            self._issue_again()

    def _learned(self, view: PeerView, source: PeerId) -> None:
        self._exchange.spread(view, source)
        self._nat.learned(view)
        if self._asks and view.serves:
            self._best.changed()
            if self._dialler.target(view.peer_id) is not None:
                self._dial_node(view)

    def _learn_found(self, sealed: SealedRecord) -> PeerView | None:
        """A record that no link told: nobody hears of it from us before a link proves it."""
        view = self.registry.learn(sealed)
        if view is not None and self._asks and view.serves:
            self._best.changed()
        return view

    def _dial_node(self, view: PeerView) -> None:
        self._want(view.peer_id, "a record", view.record.addresses, view.expires)

    def _want(self, peer_id: PeerId, way: str, addresses: list[str], until: float) -> None:
        assert self._nursery is not None
        if peer_id != self.peer_id and self.settings.access.refusal(peer_id) is None:
            self._dialler.want(self._nursery, peer_id, way, [one for one in addresses if names(one, peer_id)], until)

    def meet(self, peer_id: PeerId, addresses: list[str], *, way: str) -> None:
        """Dial a peer that somebody told of, for a while; `way` names who did. Never blocks. Only while the peer runs."""
        self._want(peer_id, way, addresses, trio.current_time() + RECORD_TTL)

    async def _hear_others(self) -> None:
        # Without the key those who hear of us, and those whom we hear of, would only be refused.
        await self._keys.keyed.wait()
        await self._hearing.run(self)

    def _sighted(self, way: str, sighting: Sighting) -> None:
        known = sighting.peer_id in self.registry.peers and self._dialler.target(sighting.peer_id) is None
        if self._asks and sighting.role in ("node", "gateway") and not known:
            self._want(sighting.peer_id, way, list(sighting.addresses), trio.current_time() + RECORD_TTL)

    async def _explain_isolation(self) -> None:
        await trio.sleep(ISOLATED_AFTER)
        if self.role == "bootstrap" and not self._bootstrap and not self.links:
            logger.info("nobody came yet; pass the others one of: %s", " ".join(f"--bootstrap {one}" for one in self.addresses))
        elif not self.leaving:
            for sentence in self.explain():
                logger.warning("%s", sentence)
