"""The distributed hash table of one mesh: py-libp2p's Kademlia, between a host and stores of ours.

1. A question always goes to the network: what this peer holds for others is never taken for an answer.
2. A question takes at most `LOOKUP_LIMIT` seconds; one that finds nothing, or fails, answers with nothing.
3. Others' questions are answered `MAX_SERVED` at a time, `MAX_SERVED_PER_PEER` of one peer, each for `SERVE_LIMIT` seconds and
   `MAX_QUESTION` bytes at most, and only those of peers that `gate` admits. What is over is reset.
4. Who asks us may be a server itself: up to `MAX_STRANGERS` wait for us to dial them and see.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import trio
from libp2p.kad_dht.kad_dht import DHTMode, KadDHT
from libp2p.kad_dht.provider_store import ProviderStore
from libp2p.kad_dht.routing_table import RoutingTable
from libp2p.peer.id import ID
from libp2p.records.validator import NamespacedValidator

from mesh.identity import PeerId, public_key_of
from mesh.transport.libp2p.kad.host import DhtHost
from mesh.transport.libp2p.kad.records import NAMESPACE, RecordValidator, model_key, protocol_of, record_key, sealed_in, value_of
from mesh.transport.libp2p.kad.stores import Providers, Values
from mesh.transport.libp2p.kad.streams import BoundedStream
from mesh.transport.libp2p.tamed import carrier_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from libp2p.abc import INetStream
    from libp2p.peer.peerinfo import PeerInfo

    from mesh.discovery.table import Gate
    from mesh.messages.record import SealedRecord
    from mesh.transport.libp2p.transport import Libp2pTransport

LOOKUP_LIMIT = 10.0
SERVE_LIMIT = 8.0
READ_LIMIT = 4.0
MAX_QUESTION = 16 * 1024
"""Bytes: a record and libp2p's own one about its sender."""
MAX_SERVED = 32
MAX_SERVED_PER_PEER = 4
MAX_STRANGERS = 64
MAX_TABLE = 256
MAX_PROVIDERS = 20
AT_ONCE = 5
"""Peers that are asked for one record at the same time."""
PAUSE = 0.5
"""Seconds until a stranger is dialled: its question names its addresses."""

logger = logging.getLogger(__name__)


class Kademlia:
    """See the head of this file. `run` must be running before anything else is called; the transport too."""

    def __init__(self, transport: Libp2pTransport, gate: Gate) -> None:
        self._gate = gate
        self._served: Counter[PeerId] = Counter()
        self._strangers: dict[PeerId, None] = {}
        self._stranger_came = trio.Event()
        self._host = DhtHost(transport, gate, protocol_of(gate.mesh), proven=self._proven, lost=self._lost)
        self._validator = RecordValidator(gate.mesh)
        self._dht = _Dht(self._host, self._validator, self._heard, serves=gate.serves)
        if gate.serves:
            transport.serve(protocol_of(gate.mesh), self._serve)

    @property
    def peers(self) -> list[PeerId]:
        """Who is in the table: servers that answered, the last one heard of last."""
        return [PeerId(str(peer)) for peer in self._dht.routing_table.get_peer_ids()]

    def addresses(self, peer_id: PeerId) -> list[str]:
        """Where a peer may be reached, the surest first."""
        return self._host.book.addresses(peer_id)

    async def run(self) -> None:
        """Keep connections and the table in order, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._host.calls.run)
            nursery.start_soon(self._look_at_strangers)

    def meet(self, peer_id: PeerId, addresses: Sequence[str]) -> None:
        """There is news of a peer: where it is, or that it lives."""
        self._host.trust(peer_id)
        self._host.book.hear(peer_id, addresses)

    def lost(self, peer_id: PeerId) -> None:
        """A peer just went away."""
        self._host.suspect(peer_id)

    async def greet(self, peer_id: PeerId) -> bool:
        """Ask a peer for its neighbours. True when it answered: then it is in the table, unless that is full."""
        with trio.move_on_after(LOOKUP_LIMIT):
            await self._dht.peer_routing._query_peer_for_closest(ID.from_base58(peer_id), self._host.get_id().to_bytes())
        return peer_id in self.peers

    async def refresh(self) -> None:
        """Look for more peers: those near to us, and some in each direction."""
        with trio.move_on_after(LOOKUP_LIMIT):
            await self._dht.refresh_routing_table()

    async def publish(self, sealed: SealedRecord) -> None:
        """Have our own record kept by others. Publish it again before it expires there."""
        try:
            with trio.move_on_after(LOOKUP_LIMIT):
                await self._dht.put_value(record_key(self._gate.own), value_of(sealed))
        except ValueError as error:
            logger.debug("our record was not published: %s", error)

    async def provide(self, model: str) -> None:
        """Have it known that we serve a model. Others take at most ten a peer in ten seconds."""
        with trio.move_on_after(LOOKUP_LIMIT):
            await self._dht.provide(model_key(self._gate.mesh, model))

    async def providers(self, model: str) -> list[PeerId]:
        """Who says to serve a model."""
        # An empty store of its own: the stock one answers from what it holds, and keeps what it hears.
        key = bytes.fromhex(model_key(self._gate.mesh, model))
        store = ProviderStore(self._host, self._dht.peer_routing)
        found: list[PeerInfo] = list(self._dht.provider_store.get_providers(key))
        with trio.move_on_after(LOOKUP_LIMIT):
            found += await store.find_providers(key, MAX_PROVIDERS)
        for provider in found:
            self._host.book.add_addrs(provider.peer_id, provider.addrs)
        ids = dict.fromkeys(PeerId(str(provider.peer_id)) for provider in found)
        return [peer_id for peer_id in ids if peer_id != self._gate.own and _is_ours(peer_id)]

    async def record(self, peer_id: PeerId) -> SealedRecord | None:
        """The record of a peer: its own word if it answers, else the newest that others hold. None when there is none."""
        key = record_key(peer_id)
        best: bytes | None = None
        with trio.move_on_after(LOOKUP_LIMIT):
            best = self._newest(key, [await self._ask(ID.from_base58(peer_id), key)])
            if best is None:
                closest = await self._dht.peer_routing.find_closest_peers_network(key.encode())
                best = self._newest(key, await self._ask_all(closest, key))
        return sealed_in(best) if best is not None else None

    async def _ask_all(self, peers: Sequence[ID], key: str) -> list[bytes | None]:
        answers: list[bytes | None] = []
        waiting = iter([peer for peer in peers if peer != self._host.get_id()])

        async def ask_in_turn() -> None:
            answers.extend([await self._ask(peer, key) for peer in waiting])

        async with trio.open_nursery() as nursery:
            for _ in range(AT_ONCE):
                nursery.start_soon(ask_in_turn)
        return answers

    async def _ask(self, peer: ID, key: str) -> bytes | None:
        answer = await self._dht.value_store._get_from_peer(peer, key.encode())
        return answer if isinstance(answer, bytes) else None

    def _newest(self, key: str, answers: Sequence[bytes | None]) -> bytes | None:
        valid = [answer for answer in answers if answer is not None and self._accepts(key, answer)]
        return valid[self._validator.select(key, valid)] if valid else None

    def _accepts(self, key: str, value: bytes) -> bool:
        try:
            self._validator.validate(key, value)
        except ValueError as error:
            logger.debug("a value of the DHT was refused: %s", error)
            return False
        return True

    async def _proven(self, peer: ID) -> None:
        await self._dht.routing_table.admit(peer)

    def _lost(self, peer: ID) -> None:
        self._dht.routing_table.remove_peer(peer)

    # Others' questions

    async def _serve(self, stream: INetStream) -> None:
        peer_id = PeerId(str(stream.muxed_conn.peer_id))
        admitted = self._gate.admits(peer_id, carrier_of(stream.muxed_conn).remote_address)
        if not admitted or self._served[peer_id] >= MAX_SERVED_PER_PEER or self._served.total() >= MAX_SERVED:
            await stream.reset()
            return
        self._served[peer_id] += 1
        try:
            with trio.move_on_after(SERVE_LIMIT) as scope:
                await self._dht.handle_stream(BoundedStream(stream, limit=MAX_QUESTION, patience=READ_LIMIT))
            if scope.cancelled_caught:
                await stream.reset()
        finally:
            self._served -= Counter((peer_id,))

    def _heard(self, peer: ID) -> None:
        peer_id = PeerId(str(peer))
        known = self._host.suspected(peer_id) or self._dht.routing_table.peer_in_table(peer)
        if not known and len(self._strangers) < MAX_STRANGERS:
            self._strangers[peer_id] = None
            self._stranger_came.set()

    async def _look_at_strangers(self) -> None:
        while True:
            await self._stranger_came.wait()
            await trio.sleep(PAUSE)
            self._stranger_came = trio.Event()
            while self._strangers:
                peer_id = next(iter(self._strangers))
                del self._strangers[peer_id]
                await self.greet(peer_id)


class _Table(RoutingTable):  # type: ignore[misc]  # untyped base
    """The stock table takes whoever is named; this one only those whom `admit` names, and is bounded."""

    async def add_peer(self, peer_obj: PeerInfo | ID, *, skip_server_mode_check: bool = False) -> bool:
        """Nothing, unless the peer is in the table: it then counts as seen just now."""
        del skip_server_mode_check
        peer = peer_obj if isinstance(peer_obj, ID) else peer_obj.peer_id
        return self.peer_in_table(peer) and await self.admit(peer)

    async def admit(self, peer: ID) -> bool:
        """Take in a peer that answered."""
        if self.size() >= MAX_TABLE and not self.peer_in_table(peer):
            return False
        return bool(await super().add_peer(peer, skip_server_mode_check=True))


class _Dht(KadDHT):  # type: ignore[misc]  # untyped base
    """The stock one with our table and stores. Its own task never runs: it would ask, publish and repeat as it likes."""

    def __init__(self, host: DhtHost, validator: RecordValidator, heard: Callable[[ID], None], *, serves: bool) -> None:
        super().__init__(
            host,
            DHTMode.CLIENT,
            validator=NamespacedValidator({NAMESPACE: validator}, strict_validation=True),
            validator_changed=True,
            strict_validation=True,
        )
        self.mode = DHTMode.SERVER if serves else DHTMode.CLIENT
        self.routing_table = _Table(host.get_id(), host, max_peers_per_subnet=0)
        self.peer_routing.routing_table = self.routing_table
        self.value_store = Values(host, host.get_id())
        self.provider_store = Providers(host, self.peer_routing)
        self._inbound_limiter = trio.CapacityLimiter(MAX_SERVED)
        self._heard = heard

    async def add_peer(self, peer_id: ID, *, skip_server_mode_check: bool = False) -> bool:
        """Somebody asked us something."""
        del skip_server_mode_check
        self._heard(peer_id)
        await trio.lowlevel.checkpoint()
        return False


def _is_ours(peer_id: PeerId) -> bool:
    try:
        public_key_of(peer_id)
    except ValueError:
        return False
    return True
