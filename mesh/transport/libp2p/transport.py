"""The door to the network: listens, dials, and hands out channels.

1. One connection carries one channel, in whichever direction it was opened, and ends with it. A second one is refused. Streams of
   other protocols (`serve`) that we open go on connections of their own (`connect`), which never carry a channel.
2. Every socket belongs to `run`: when it ends, for whatever reason, all of them are closed at once.
3. What strangers can take is bounded: `MAX_INBOUND` connections, `MAX_HANDSHAKES` of them unproven, each of these for at most
   `HANDSHAKE_TIMEOUT` seconds; `admission` says who makes room. A connection without a stream for `IDLE` seconds is closed.
4. Whatever goes wrong on a connection, or in a handler, ends that connection and nothing else.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from mesh.transport.base import Handler, Transport
from mesh.transport.libp2p.addresses import Address, host_of, reachable_hosts
from mesh.transport.libp2p.admission import Admission, Place
from mesh.transport.libp2p.carrier import Carrier
from mesh.transport.libp2p.channel import Libp2pChannel
from mesh.transport.libp2p.connection import Connection
from mesh.transport.libp2p.dialling import Dial
from mesh.transport.libp2p.listeners import bind, listen_address
from mesh.transport.libp2p.tamed import HANDSHAKE_TIMEOUT, Host, carrier_of
from mesh.transport.libp2p.websocket import WebSocketCarrier

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from libp2p.abc import IMuxedConn, INetStream

    from mesh.identity import Identity

PROTOCOL = "/infermesh/link/1.0.0"
"""The major version of what is spoken on a channel stands in its name."""

MAX_INBOUND = 1024
MAX_HANDSHAKES = 128
IDLE = 60.0

_log = logging.getLogger(__name__)


class Libp2pTransport(Transport):
    """A peer's way to others over TCP and WebSocket, encrypted by Noise, with libp2p's peer ids."""

    def __init__(self, identity: Identity, listen: Sequence[str], *, max_inbound: int = MAX_INBOUND) -> None:
        """`listen`: multiaddrs such as `/ip4/0.0.0.0/tcp/4001`, also with `/ws`; port 0 is any free one. Raises Misconfigured."""
        self._identity = identity
        self._listen = [listen_address(text) for text in listen]
        self._inbound = Admission(max_inbound, MAX_HANDSHAKES)
        self._bound: list[Address] = []
        self._carriers: set[Carrier] = set()
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
        return await dial.run(self._open_channel)

    @property
    def identity(self) -> Identity:
        """Whose connections these are."""
        return self._identity

    async def connect(self, addresses: Sequence[str]) -> Connection:
        """A connection without a channel, for streams of other protocols. Blocks and raises as `dial` does."""
        self._running()
        dial: Dial[Connection] = Dial(addresses)
        return await dial.run(self._open_connection)

    def serve(self, protocol: str, handler: Callable[[INetStream], Awaitable[None]]) -> None:
        """Answer streams of another protocol, on whatever connection they come. May be called before `run`."""
        self._served[protocol] = handler
        if self._host is not None:
            self._host.set_stream_handler(protocol, handler)

    async def _serve(
        self, handler: Handler, listeners: list[tuple[Address, trio.SocketListener]], task_status: trio.TaskStatus[None]
    ) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._host = Host(self._identity, nursery, lambda: [str(address) for address in self._reachable()])
            self._host.set_stream_handler(PROTOCOL, partial(self._welcome, handler))
            for protocol, answer in self._served.items():
                self._host.set_stream_handler(protocol, answer)
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

    async def _open_channel(self, address: Address, connected: Callable[[], None]) -> Libp2pChannel:
        """A channel to the peer at one address. Raises what the network and py-libp2p raise."""
        connection = await self._open_connection(address, connected)
        try:
            return self._channel(await connection.open(PROTOCOL))
        except BaseException:
            connection.abort()
            raise

    async def _open_connection(self, address: Address, connected: Callable[[], None]) -> Connection:
        """A connection to the peer at one address. Raises what the network and py-libp2p raise."""
        if address.peer_id == self._identity.peer_id:
            raise ValueError("that is this peer itself")
        stream = await trio.open_tcp_stream(await host_of(address), address.port)
        connected()
        carrier = self._carry(WebSocketCarrier if address.websocket else Carrier, stream)
        try:
            if isinstance(carrier, WebSocketCarrier):
                await carrier.connect(address.host, address.port)
            host = self._running()
            return Connection(host, await host.connect(carrier, str(address.peer_id)), carrier)
        except BaseException:
            carrier.abort()
            raise

    async def _accept(self, kind: type[Carrier], stream: trio.SocketStream) -> None:
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

    async def _serve_one(self, carrier: Carrier, scope: trio.CancelScope) -> None:
        host, _ = carrier.get_remote_address()
        place = self._inbound.enter(host, scope.cancel, lambda: carrier.taken)
        if place is None:
            return
        try:
            await self._watch(await self._prove(carrier, place))
        finally:
            self._inbound.leave(place)

    async def _prove(self, carrier: Carrier, place: Place) -> IMuxedConn:
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

    def _carry(self, kind: type[Carrier], stream: trio.SocketStream) -> Carrier:
        """Take over a socket, so that it is closed with us."""
        try:
            carrier = kind(stream)
        except OSError:
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

    async def _carry_until_closed(self, carrier: Carrier) -> None:
        try:
            await carrier.run()
        finally:
            carrier.close_now()
            self._carriers.discard(carrier)

    def _running(self) -> Host:
        if self._host is None:
            raise RuntimeError("the transport does not run")
        return self._host
