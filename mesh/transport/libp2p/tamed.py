"""The parts of py-libp2p that are replaced, because as they come they are unsafe. Each has a regression test.

1. Noise and yamux only. The stock host also accepts plaintext, where a dialer may claim any peer id.
2. Every task of a connection runs in a nursery of ours and none of its errors leaves it: one bad peer cannot end the program.
3. No connection is opened, trimmed or closed behind our back: no auto-connector, no pruner, no notifees, no identify of our own.
4. A connection holds at most `MAX_HELD` unread bytes and `MAX_STREAMS` streams. It is read no further while its peer opens
   streams faster than `STREAM_RATE`. The stock muxer only logs a broken window and takes any number of streams.
5. It logs nothing unless `LIBP2P_DEBUG` asks for it.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import trio
from libp2p.crypto.ed25519 import create_new_key_pair
from libp2p.crypto.x25519 import create_new_key_pair as create_noise_key_pair
from libp2p.custom_types import TProtocol
from libp2p.host.basic_host import BasicHost
from libp2p.host.ping import ID as PING
from libp2p.identity.identify import identify
from libp2p.identity.identify_push.identify_push import ID_PUSH
from libp2p.network.config import ConnectionConfig
from libp2p.network.connection import swarm_connection
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.peer.peerstore import PeerStore
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE_ID
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux import yamux
from libp2p.transport.upgrader import TransportUpgrader
from multiaddr import Multiaddr

from mesh.transport.libp2p.admission import Allowance
from mesh.transport.libp2p.ping import answer_pings
from mesh.version import __version__

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from libp2p.abc import IMuxedConn, IMuxedStream, INetConn, INetStream, ISecureConn

    from mesh.identity import Identity
    from mesh.transport.libp2p.medium import Medium

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096
"""What py-libp2p may hold. The door's own limit for inbound ones is lower, so that this one is never what decides."""

MAX_HELD = 16 * 1024 * 1024
"""Bytes that a connection holds because nobody read them: several times what an honest sender's windows allow."""

MAX_STREAMS = 32
"""Streams that a peer may have open on one connection. A channel needs one."""

STREAM_BURST = 128
STREAM_RATE = 32.0
"""Streams a second that a peer may open on one connection, after a burst. One costs about a millisecond."""

MAX_FRAME = 65_519
"""Bytes of a frame of the multiplexer: what fits into one message of the encryption, so that a write is all or nothing."""

MAX_PAYLOAD = MAX_FRAME - yamux.HEADER_SIZE

HANDSHAKE_TIMEOUT = 5.0
"""Seconds for encryption, multiplexer and protocol to be agreed upon."""

yamux.MAX_MESSAGE_SIZE = MAX_FRAME
# The stock window grows to 16 MiB for every stream of every peer.
yamux.MAX_WINDOW_SIZE = 1024 * 1024
identify.AGENT_VERSION = f"infermesh/{__version__}"
# It logs to the root logger, which installs a handler on stderr when there is none.
swarm_connection.logging = logging.getLogger("libp2p.network.connection.swarm_connection")

if "LIBP2P_DEBUG" not in os.environ:
    _root = logging.getLogger("libp2p")
    _root.addHandler(logging.NullHandler())
    _root.setLevel(logging.CRITICAL)


class Host(BasicHost):  # type: ignore[misc]  # untyped base
    """Answers streams by protocol; also pings and identify for libp2p peers of other kinds."""

    def __init__(self, identity: Identity, nursery: trio.Nursery, addresses: Callable[[], list[str]]) -> None:
        keys = create_new_key_pair(identity.seed)
        peer_id = ID.from_pubkey(keys.public_key)
        assert str(peer_id) == identity.peer_id
        store = PeerStore()
        store.add_key_pair(peer_id, keys)
        noise = Noise(keys, noise_privkey=create_noise_key_pair().private_key)
        self.swarm = _Swarm(peer_id, store, _Upgrader({NOISE_ID: noise}, {TProtocol(yamux.PROTOCOL_ID): Yamux}), nursery)
        super().__init__(
            network=self.swarm,
            negotiate_timeout=int(HANDSHAKE_TIMEOUT),
            addrs_factory=lambda _: [Multiaddr(address) for address in addresses()],
            disable_identify_address_discovery=True,
        )
        # Both the book-keeping per peer and the identify of every new connection grow with whoever comes along.
        self.swarm.notifees.clear()
        self.remove_stream_handler(ID_PUSH)
        self.set_stream_handler(PING, answer_pings)

    async def connect(self, carrier: Medium, peer_id: str) -> INetConn:
        """A new connection to `peer_id` over `carrier`."""
        raw = RawConnection(carrier, initiator=True)
        return await self.swarm.upgrade_outbound_raw_conn(raw, ID.from_base58(peer_id))

    async def open_stream(self, connection: INetConn, protocol: str) -> INetStream:
        """A stream of `protocol` on a connection of ours."""
        stream = await connection.new_stream()
        communicator = MultiselectCommunicator(stream)
        await self.multiselect_client.handshake(communicator)
        stream.set_protocol(await self.multiselect_client.try_select(communicator, TProtocol(protocol)))
        return stream

    async def prove(self, carrier: Medium, peer_id: str) -> None:
        """Return when `peer_id` proved itself over `carrier`, as the side that was dialled."""
        await self.swarm.upgrade_outbound_raw_conn(RawConnection(carrier, initiator=True), ID.from_base58(peer_id))

    async def accept(self, carrier: Medium) -> IMuxedConn:
        """The connection of whoever proved an identity over `carrier`. Its streams go to the handlers."""
        return await self.swarm.upgrade_inbound_raw_conn(RawConnection(carrier, initiator=False), carrier.remote_address)

    def run_task(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        """Run a task of a connection: its errors end nothing else."""
        self.swarm.manager.run_task(task, *args)


class _Swarm(Swarm):  # type: ignore[misc]  # untyped base
    def __init__(self, peer_id: ID, store: PeerStore, upgrader: TransportUpgrader, nursery: trio.Nursery) -> None:
        # The stock values open connections to known peers below 100, close some above 200, and above 3 to one peer.
        config = ConnectionConfig(
            max_connections=MAX_CONNECTIONS,
            min_connections=0,
            low_watermark=0,
            high_watermark=MAX_CONNECTIONS,
            max_connections_per_peer=MAX_CONNECTIONS,
            inbound_upgrade_timeout=HANDSHAKE_TIMEOUT,
            outbound_upgrade_timeout=HANDSHAKE_TIMEOUT,
            inbound_stream_protocol_negotiation_timeout=HANDSHAKE_TIMEOUT,
            outbound_stream_protocol_negotiation_timeout=HANDSHAKE_TIMEOUT,
        )
        super().__init__(peer_id, store, upgrader, transports=[], connection_config=config)
        self._tasks = _Tasks(nursery)

    @property
    def manager(self) -> _Tasks:
        return self._tasks

    def set_stream_handler(self, stream_handler: Callable[[INetStream], Awaitable[None]]) -> None:
        async def contained(stream: INetStream) -> None:
            # A stream that its handler leaves open stays in the books of both sides for ever.
            try:
                if len(stream.muxed_conn.streams) > MAX_STREAMS:
                    await stream.reset()
                    return
                await stream_handler(stream)
                await stream.close()
            except Exception as error:  # noqa: BLE001 - rule 2: it would end the connection, and in the stock host the program
                _log.debug("a stream of %s failed: %r", stream.muxed_conn.peer_id, error)
                await stream.reset()

        super().set_stream_handler(contained)

    async def notify_disconnected(self, conn: INetConn) -> None:
        """Without the auto-connector's list, which keeps every peer that ever left."""
        await self._notify("disconnected", conn)


class _Tasks:
    """Where a connection's tasks run, in place of py-libp2p's service manager."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def run_task(self, task: Callable[..., Awaitable[None]], *args: Any) -> None:
        self._nursery.start_soon(_contain, task, args)


async def _contain(task: Callable[..., Awaitable[None]], args: tuple[Any, ...]) -> None:
    try:
        await task(*args)
    except Exception as error:  # noqa: BLE001 - rule 2
        _log.debug("a task of a connection failed: %r", error)


class _Upgrader(TransportUpgrader):  # type: ignore[misc]  # untyped base
    async def upgrade_connection(self, conn: ISecureConn, peer_id: ID) -> IMuxedConn:
        """As the base does, but with our multiplexer: the base always makes its own."""
        muxer = await self.muxer_multistream.select_transport(conn)
        return muxer(conn, peer_id, is_initiator=conn.is_initiator)


class Yamux(yamux.Yamux):  # type: ignore[misc]  # untyped base
    """The stock multiplexer with a bound on what it holds and on how fast streams come."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._allowance = Allowance(STREAM_BURST, STREAM_RATE)
        self.streamed_at = trio.current_time()
        """When the other side last opened a stream; at first, when the connection began."""

    async def accept_stream(self) -> IMuxedStream:
        """The next stream that the other side opens, when it is time for one more."""
        stream: IMuxedStream = await super().accept_stream()
        while not self._allowance.take():  # noqa: ASYNC110 - only time makes room
            await trio.sleep(self._allowance.wait)
        self.streamed_at = trio.current_time()
        return stream

    async def _read_data_body(self, length: int) -> bytes:
        held = sum(len(buffer) for buffer in self.stream_buffers.values())
        if held + length > MAX_HELD:
            # The one error at which the caller closes the connection; after any other it goes on in the middle of a frame.
            raise trio.TooSlowError
        data: bytes = await super()._read_data_body(length)
        return data


def carrier_of(connection: IMuxedConn) -> Medium:
    """The bytes below a connection: multiplexer, encryption, its framing, raw connection."""
    carrier: Medium = connection.secured_conn.conn.read_writer.read_write_closer.stream
    return carrier
