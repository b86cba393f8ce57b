"""How others get to this peer, and it to them, where not everybody can dial everybody.

1. It finds out whether it can be dialled (`reachability`). When not, it keeps reservations with relays (`relay/reservations`) and
   announces addresses that lead over them.
2. It relays for others (`relay/relay`) when it was told to; else when it is a bootstrap peer or knows that it can be dialled.
3. A link over a relay is one to be replaced (`direct_paths`).
4. Its own addresses are announced in an order that helps: those that others reached first, those over relays last.
5. Nothing of this is done where the transport carries links alone.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from mesh.addresses import is_loopback_address, is_near, is_relayed
from mesh.direct_paths import DirectPaths
from mesh.errors import Denied, MeshError
from mesh.messages.reachability import DialBack, DialedBack
from mesh.messages.relay import Incoming, Release, Reserve, Reserved
from mesh.reachability import DialBacks, Reachability
from mesh.reachability.reachability import FEATURE
from mesh.record import RECORD_TTL
from mesh.relay import PROTOCOL
from mesh.relay.joining import LINK_LIMIT, Joining
from mesh.relay.relay import Relay
from mesh.relay.reservations import Reservations
from mesh.transport.streams import NoStreams, Streams

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.links import Links
    from mesh.messages.link import PathControl
    from mesh.peer_settings import PeerSettings
    from mesh.registry import PeerView, Registry
    from mesh.trail import Trail
    from mesh.transport.base import Channel, Transport

    Want = Callable[[PeerId, str, list[str], float], None]

MAX_ADDRESSES = 16
"""In our record: a machine with many interfaces must not crowd out its models."""
PER_RELAY = 3
"""Addresses of one relay that we announce."""

HIDDEN = (
    "Other peers cannot dial this one, and no relay reaches it for them: open its TCP port (`--listen`) in the firewall or "
    "router, or pass `--bootstrap` with the address of a `mesh-bootstrap` that both sides reach; it relays."
)

logger = logging.getLogger(__name__)


class Nat:
    """Of one peer. See the head of this file for the rules."""

    def __init__(
        self,
        settings: PeerSettings,
        transport: Transport,
        links: Links,
        registry: Registry,
        trail: Trail,
        *,
        want: Want,
        changed: Callable[[], None],
    ) -> None:
        """`want` keeps a link to a peer for a while; `changed` is told when our record should say something else."""
        self._settings = settings
        self._transport = transport
        self._links = links
        self._registry = registry
        self._want = want
        self._told = changed
        self._open = settings.access.keyring is None
        self._able = isinstance(transport, Streams)
        streams: Streams = transport if isinstance(transport, Streams) else NoStreams()
        self._linked = trio.Event()
        self._nursery: trio.Nursery | None = None
        self.reachability = Reachability(
            lambda: transport.addresses, links.current.values, trail, self._found_out, open_mesh=self._open
        )
        self.relay = Relay(links.get, self._objection, lambda: self.relays, settings.relay_bounds)
        self.reservations = Reservations(
            registry, trail, needed=lambda: self._hidden, changed=self._changed, dial=self._dial_relay
        )
        self._dial_backs = DialBacks(streams, self._announced_by, open_mesh=self._open)
        self._joining = Joining(settings.identity.peer_id, streams, self)
        self._paths = DirectPaths(links.get, links.dial, self._announced_by, trail, open_mesh=self._open)
        streams.answer(PROTOCOL, self.relay.answer)
        streams.join_by(self._joining.join)

    @property
    def features(self) -> list[str]:
        """What our hello says."""
        return [FEATURE] if self._able else []

    @property
    def relays(self) -> bool:
        """True while we join others."""
        settings = self._settings
        if not self._able or self._links.leaving or settings.role == "client":
            return False
        by_default = settings.role == "bootstrap" or self.reachability.verdict == "reachable"
        return by_default if settings.relay is None else settings.relay

    def announced(self) -> list[str]:
        """Our addresses as the record says them."""
        reached, listeners = self.reachability.reached, self._transport.addresses
        ours = dict.fromkeys([*listeners, *self.reachability.seen])
        circuits = [circuit for relay in self.reservations.relays for circuit in self._circuits(relay)]
        direct = sorted(ours, key=lambda address: address not in reached)
        return [*direct[: MAX_ADDRESSES - len(circuits)], *circuits]

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep this peer reachable until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            if self._able:
                nursery.start_soon(self.reachability.run)
                nursery.start_soon(self.reservations.run)
            task_status.started()
            await trio.sleep_forever()

    def up(self, link: Link) -> None:
        """A link is the one of its peer now."""
        self._linked.set()
        self._linked = trio.Event()
        self.reachability.look()
        self.reservations.look()
        if link.via is not None:
            logger.info("%s is reached over the relay %s", link.peer_id, link.via)
            self._start(self._paths.seek, link)

    def gone(self, link: Link) -> None:
        """A link ended."""
        self.relay.gone(link.peer_id)
        self.reservations.look()
        self._paths.gone(link)

    def learned(self, view: PeerView) -> None:
        """A record is new."""
        self._paths.news(view.peer_id)
        if view.relay and view.live:
            self.reservations.look()

    def hear(self, link: Link, message: PathControl) -> None:
        """Somebody said something about how to get to somebody."""
        match message:
            case DialBack():
                self._start(self._dial_backs.answer, link, message)
            case DialedBack():
                self.reachability.hear(link, message)
            case Reserve():
                link.send(self.relay.reserve(link))
            case Reserved():
                self.reservations.hear(link, message)
            case Release():
                self.relay.release(link.peer_id)
            case Incoming() if link.peer_id in self.reservations.relays:
                self._start(self._joining.fetch, self._addresses_of(link.peer_id), message)
            case _:
                pass

    async def linked(self, peer_id: PeerId, addresses: Sequence[str]) -> bool:
        """As `joining.Hands` says."""
        self._want(peer_id, "relay", list(addresses), trio.current_time() + RECORD_TTL)
        with trio.move_on_after(LINK_LIMIT):
            while self._links.get(peer_id) is None:
                await self._linked.wait()
        return self._links.get(peer_id) is not None

    def report(self) -> dict[str, object]:
        """How others get to us and whom we relay, ready for JSON."""
        return {
            "reachability": self.reachability.verdict,
            "reached_at": self.reachability.reached,
            "relayed_by": self.reservations.relays,
            "relays_others": self.relays,
            "reservations": len(self.relay.reservations),
            "circuits": len(self.relay.circuits),
        }

    def explain(self) -> list[str]:
        """Sentences that say why others cannot get to us; empty when they can, or nobody knows."""
        if not self._hidden or self.reservations.relays:
            return []
        return [HIDDEN]

    @property
    def _hidden(self) -> bool:
        return self._settings.role != "client" and self.reachability.verdict == "not reachable"

    def _found_out(self) -> None:
        verdict = self.reachability.verdict
        if verdict == "reachable":
            logger.info("other peers can dial this one at %s", ", ".join(self.reachability.reached))
        else:
            logger.info("other peers cannot dial this one: it looks for relays, and for direct paths where it is relayed")
        self._paths.news()
        self._changed()

    def _changed(self) -> None:
        if relays := self.reservations.relays:
            logger.info("this peer is reached over %s", ", ".join(f"the relay {relay}" for relay in relays))
        self.reservations.look()
        self._told()

    def _circuits(self, relay: PeerId) -> list[str]:
        link = self._links.get(relay)
        here = link is not None and is_loopback_address(link.remote_address)
        usable = [address for address in self._addresses_of(relay) if here or not is_loopback_address(address)]
        return [f"{address}/p2p-circuit/p2p/{self._settings.identity.peer_id}" for address in usable[:PER_RELAY]]

    def _addresses_of(self, peer_id: PeerId) -> list[str]:
        """Where a relay is: as the operator said it, then as it says itself."""
        given = [address for address in self._settings.bootstrap if address.endswith(f"/p2p/{peer_id}")]
        return [address for address in dict.fromkeys([*given, *self._announced_by(peer_id)]) if not is_relayed(address)]

    def _announced_by(self, peer_id: PeerId) -> list[str]:
        view = self._registry.peers.get(peer_id)
        return [] if view is None else view.record.addresses[:MAX_ADDRESSES]

    def _dial_relay(self, view: PeerView) -> None:
        self._want(view.peer_id, "relay", self._addresses_of(view.peer_id), view.expires)

    def _objection(self, channel: Channel) -> MeshError | None:
        """Why nobody is joined over a stream."""
        if channel.via is not None:
            return Denied("a circuit does not lead over another one", code="relay_chain", status=403)
        if self._open and not is_near(channel.remote_address):
            return Denied("this mesh is open and joins near addresses only", code="open_mesh", status=403)
        return self._settings.access.refusal(channel.peer_id)

    def _start(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(task, *arguments)
