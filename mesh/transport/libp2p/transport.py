"""The door to the network: listens, dials, and hands out channels.

1. One connection carries one channel, in whichever direction it was opened, and ends with it. A second one is refused. Streams of
   other protocols (`serve`) that we open go on connections of their own (`connect`), which never carry a channel.
2. Every socket belongs to `run`: when it ends, for whatever reason, all of them are closed at once.
3. What strangers can take is bounded: `MAX_INBOUND` connections, `MAX_HANDSHAKES` of them unproven, each of these for at most
   `HANDSHAKE_TIMEOUT` seconds; `admission` says who makes room. A connection without a stream for `IDLE` seconds is closed.
4. A stream that a relay joined for us is a connection like any other once it is joined, and counts like one.
5. Whatever goes wrong on a connection, or in a handler, ends that connection and nothing else.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Any

import trio

from mesh.errors import Unavailable
from mesh.transport.base import Channel, Handler, Transport
from mesh.transport.libp2p.addresses import MAX_LENGTH, Address, host_of, reachable_hosts
from mesh.transport.libp2p.admission import Admission, Place
from mesh.transport.libp2p.carrier import Carrier
from mesh.transport.libp2p.channel import Libp2pChannel
from mesh.transport.libp2p.circuit import CircuitMedium
from mesh.transport.libp2p.connection import Connection
from mesh.transport.libp2p.dialling import DIAL_TIMEOUT, Dial, reason_of
from mesh.transport.libp2p.listeners import bind, listen_address
from mesh.transport.libp2p.tamed import HANDSHAKE_TIMEOUT, Host, carrier_of
from mesh.transport.libp2p.websocket import WebSocketCarrier
from mesh.transport.streams import Join, Streams

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from libp2p.abc import IMuxedConn, INetStream

    from mesh.identity import Identity
    from mesh.transport.libp2p.medium import Medium

PROTOCOL = "/infermesh/link/1.0.0"
"""The major version of what is spoken on a channel stands in its name."""

MAX_INBOUND = 1024
MAX_HANDSHAKES = 128
IDLE = 60.0

_log = logging.getLogger(__name__)


def _ignore() -> None:
    """Nobody wants to know."""


class Libp2pTransport(Transport, Streams):
    """A peer's way to others over TCP and WebSocket, encrypted by Noise, with libp2p's peer ids."""

    def __init__(self, identity: Identity, listen: Sequence[str], *, max_inbound: int = MAX_INBOUND) -> None:
        """`listen`: multiaddrs such as `/ip4/0.0.0.0/tcp/4001`, also with `/ws`; port 0 is any free one. Raises Misconfigured."""
        self._identity = identity
        self._listen = [listen_address(text) for text in listen]
        self._inbound = Admission(max_inbound, MAX_HANDSHAKES)
        self._bound: list[Address] = []
        self._carriers: set[Medium] = set()
        self._answers: dict[str, Handler] = {}
        self._join: Join | None = None
        self._nursery: trio.Nursery | None = None
        self._host: Host | None = None
        self._served: dict[str, Callable[[INetStream], Awaitable[None]]] = {}

    async def run(self, handler: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """As `Transport` says."""
        listeners: list[tuple[Address, trio.SocketListener]] = []
        try:
            listeners.extend(bind(address) for address in self._listen)
            self._bound = [address for address, _ in listeners]
            await self._serve(handler, listeners, task_status)
        finally:
            for _, listener in listeners:
                listener.socket.close()
            for carrier in list(self._carriers):
                carrier.abort()
            self._nursery = self._host = None
            self._bound = []

    @property
    def addresses(self) -> list[str]:
        """As `Transport` says. Empty until `run` has started."""
        return [f"{address}/p2p/{self._identity.peer_id}" for address in self._reachable()]

    async def dial(self, addresses: Sequence[str]) -> Libp2pChannel:
        """As `Transport` says."""
        self._running()
        dial: Dial[Libp2pChannel] = Dial(addresses)
        return await dial.run(partial(self._open_channel, PROTOCOL))

    @property
    def identity(self) -> Identity:
        """Whose connections these are."""
        return self._identity

    async def connect(self, addresses: Sequence[str]) -> Connection:
        """A connection without a channel, for streams of other protocols. Blocks and raises as `dial` does."""
        self._running()
        dial: Dial[Connection] = Dial(addresses)
        return await dial.run(partial(self._open_connection, ""))

    def serve(self, protocol: str, handler: Callable[[INetStream], Awaitable[None]]) -> None:
        """Answer streams of another protocol, on whatever connection they come. May be called before `run`."""
        self._served[protocol] = handler
        if self._host is not None:
            self._host.set_stream_handler(protocol, handler)

    def answer(self, protocol: str, handler: Handler) -> None:
        """As `Streams` says."""
        self._answers[protocol] = handler

    def join_by(self, join: Join) -> None:
        """As `Streams` says."""
        self._join = join

    async def open(self, addresses: Sequence[str], protocol: str) -> Libp2pChannel:
        """As `Streams` says."""
        self._running()
        dial: Dial[Libp2pChannel] = Dial(addresses)
        return await dial.run(partial(self._open_channel, protocol))

    async def welcome(self, joined: Channel) -> None:
        """As `Streams` says."""
        await self._accept(CircuitMedium, joined)

    async def probe(self, address: str) -> None:
        """As `Streams` says. Blocks for at most DIAL_TIMEOUT."""
        try:
            wanted = Address.parse(address)
            with trio.fail_after(DIAL_TIMEOUT):
                carrier = await self._reach("", wanted)
                try:
                    await self._running().prove(carrier, str(wanted.peer_id))
                finally:
                    carrier.abort()
        except Exception as error:
            raise Unavailable(f"{address[:MAX_LENGTH]}: {reason_of(error)}", code="unreachable") from error

    async def _serve(
        self, handler: Handler, listeners: list[tuple[Address, trio.SocketListener]], task_status: trio.TaskStatus[None]
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._host = Host(self._identity, nursery, lambda: [str(address) for address in self._reachable()])
            for protocol, answer in {PROTOCOL: handler, **self._answers}.items():
                self._host.set_stream_handler(protocol, partial(self._welcome, answer))
            for protocol, serve in self._served.items():
                self._host.set_stream_handler(protocol, serve)
            for address, listener in listeners:
                accept = partial(self._accept, WebSocketCarrier if address.websocket else Carrier)
                nursery.start_soon(partial(trio.serve_listeners, accept, [listener], handler_nursery=nursery))
            task_status.started()
            await trio.sleep_forever()

    def _reachable(self) -> list[Address]:
        found = [
            Address(address.kind, host, address.port, address.websocket, None)
            for address in self._bound
            for host in reachable_hosts(address.host)
        ]
        # Loopback first over all listeners: a peer on this machine should not go through the network.
        return sorted(found, key=lambda address: not address.is_loopback)

    async def _open_channel(self, protocol: str, address: Address, connected: Callable[[], None]) -> Libp2pChannel:
        """A channel to the peer at one address. Raises what the network and py-libp2p raise."""
        connection = await self._open_connection(protocol, address, connected)
        try:
            return self._channel(await connection.open(protocol))
        except BaseException:
            connection.abort()
            raise

    async def _open_connection(self, protocol: str, address: Address, connected: Callable[[], None]) -> Connection:
        """A connection to the peer at one address, for streams of `protocol`. Raises what the network and py-libp2p raise."""
        if address.peer_id == self._identity.peer_id:
            raise ValueError("that is this peer itself")
        carrier = await self._reach(protocol, address, connected)
        try:
            host = self._running()
            return Connection(host, await host.connect(carrier, str(address.peer_id)), carrier)
        except BaseException:
            carrier.abort()
            raise

    async def _reach(self, protocol: str, address: Address, connected: Callable[[], None] = _ignore) -> Medium:
        """Bytes to the peer at one address, on which nothing is proven yet."""
        if address.relay is not None:
            return self._carry(CircuitMedium, await self._joined(protocol, address))
        stream = await trio.open_tcp_stream(await host_of(address), address.port)
        connected()
        carrier = self._carry(WebSocketCarrier if address.websocket else Carrier, stream)
        try:
            if isinstance(carrier, WebSocketCarrier):
                await carrier.connect(address.host, address.port)
        except BaseException:
            carrier.abort()
            raise
        return carrier

    async def _joined(self, protocol: str, address: Address) -> Channel:
        if self._join is None or protocol != PROTOCOL:
            raise ValueError("it leads over a relay, and only links do")
        assert address.peer_id is not None
        return await self._join(str(address.hop), address.peer_id)

    async def _accept(self, kind: Callable[[Any], Medium], stream: trio.SocketStream | Channel) -> None:
        """Serve one inbound connection until it ends, or has to make room."""
        try:
            carrier = self._carry(kind, stream)
            try:
                with trio.CancelScope() as scope:
                    await self._serve_one(carrier, scope)
            finally:
                carrier.abort()
        except Exception as error:  # noqa: BLE001 - rule 4; handshakes with strangers raise whatever their libraries raise
            _log.debug("an inbound connection failed: %r", error)

    async def _serve_one(self, carrier: Medium, scope: trio.CancelScope) -> None:
        host, _ = carrier.get_remote_address()
        place = self._inbound.enter(host, scope.cancel, lambda: carrier.taken)
        if place is None:
            return
        try:
            await self._watch(await self._prove(carrier, place))
        finally:
            self._inbound.leave(place)

    async def _prove(self, carrier: Medium, place: Place) -> IMuxedConn:
        with trio.fail_after(HANDSHAKE_TIMEOUT):
            if isinstance(carrier, WebSocketCarrier):
                await carrier.accept()
            connection = await self._running().accept(carrier)
        if not self._inbound.prove(place, str(connection.peer_id)):
            raise ValueError(f"{connection.peer_id} has too many connections, or opens them too fast")
        return connection

    @staticmethod
    async def _watch(connection: IMuxedConn) -> None:
        """Return when a connection has ended, or has had no stream for a while."""
        while not connection.event_closed.is_set():
            with trio.move_on_after(IDLE):
                await connection.event_closed.wait()
            if not connection.streams and trio.current_time() - connection.streamed_at >= IDLE:
                return

    async def _welcome(self, handler: Handler, stream: INetStream) -> None:
        """Hand an inbound stream of our protocol to the handler, in a task that does not end with the connection."""
        if carrier_of(stream.muxed_conn).taken:
            raise ValueError("this connection has its channel already")
        channel = self._channel(stream)
        assert self._nursery is not None
        self._nursery.start_soon(self._handle, handler, channel)
        await channel.closed.wait()

    async def _handle(self, handler: Handler, channel: Libp2pChannel) -> None:
        try:
            await handler(channel)
            await channel.aclose()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            _log.debug("a channel from %s ended under its handler: %s", channel.peer_id, error)
        except Exception:  # noqa: BLE001 - rule 4; it is logged with its trace
            _log.exception("the handler of a channel from %s failed", channel.peer_id)
        finally:
            channel.abort()

    def _channel(self, stream: INetStream) -> Libp2pChannel:
        channel = Libp2pChannel(stream)
        carrier_of(stream.muxed_conn).taken = True
        self._running().run_task(channel.run)
        return channel

    def _carry(self, kind: Callable[[Any], Medium], stream: trio.SocketStream | Channel) -> Medium:
        """Take over a socket, or what stands for one, so that it is closed with us."""
        try:
            carrier = kind(stream)
        except OSError:
            if isinstance(stream, trio.SocketStream):
                stream.socket.close()
            raise
        self._carriers.add(carrier)
        try:
            self._running().run_task(self._carry_until_closed, carrier)
        except RuntimeError:
            self._carriers.discard(carrier)
            carrier.abort()
            raise
        return carrier

    async def _carry_until_closed(self, carrier: Medium) -> None:
        try:
            await carrier.run()
        finally:
            carrier.close_now()
            self._carriers.discard(carrier)

    def _running(self) -> Host:
        if self._host is None:
            raise RuntimeError("the transport does not run")
        return self._host
