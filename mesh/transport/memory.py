"""A network in memory, for tests: the interface of a real one, with latency, silence and death on demand.

1. A direction holds at most `CAPACITY` bytes; a writer waits for its reader.
2. Bytes arrive in order, each `latency` seconds after they were written.
3. A dead peer's channels break at once. A hung or partitioned one is silent: nothing arrives, nobody is told.
4. All waiting is trio's, so a mock clock governs it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

import trio

from mesh.errors import Misconfigured, Unavailable
from mesh.transport.base import Channel, Handler, Transport

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.identity import Identity, PeerId

CAPACITY = 64 * 1024
"""Bytes on their way in one direction, like a small socket buffer."""
CONNECT_LIMIT = 5.0
"""Seconds until a dial to a silent peer gives up."""


class MemoryNetwork:
    """Who listens where, and what is wrong between whom."""

    def __init__(self, *, latency: float = 0.0) -> None:
        """`latency` in seconds, one way."""
        self.latency = latency
        self.listeners: dict[str, MemoryTransport] = {}
        self._transports: list[MemoryTransport] = []
        self._hung: set[PeerId] = set()
        self._parted: set[frozenset[PeerId]] = set()
        self._changed = trio.lowlevel.ParkingLot()

    def attach(self, transport: MemoryTransport) -> int:
        """A number that no transport of this network had before."""
        self._transports.append(transport)
        return len(self._transports)

    def kill(self, peer: PeerId) -> None:
        """Abrupt death: every channel breaks, nobody listens any more. A new transport of the same identity lives."""
        for transport in self._transports:
            if transport.identity.peer_id == peer:
                transport.die()

    def hang(self, peer: PeerId) -> None:
        """Silence in both directions, until `resume`."""
        self._hung.add(peer)

    def resume(self, peer: PeerId) -> None:
        """End a `hang`: what was held back arrives."""
        self._hung.discard(peer)
        self._changed.unpark_all()

    def partition(self, one: PeerId, other: PeerId) -> None:
        """Silence between two peers, until `heal`."""
        self._parted.add(frozenset((one, other)))

    def heal(self, one: PeerId, other: PeerId) -> None:
        """End a `partition`: what was held back arrives."""
        self._parted.discard(frozenset((one, other)))
        self._changed.unpark_all()

    def silent(self, one: PeerId, other: PeerId) -> bool:
        """True while nothing passes between the two."""
        return bool(self._hung & {one, other}) or frozenset((one, other)) in self._parted

    async def wait_change(self) -> None:
        """Wait until a silence or a channel ended."""
        await self._changed.park()

    def wake(self) -> None:
        """Let everybody who waits for a change look again."""
        self._changed.unpark_all()


class _Pipe:
    """One direction of a channel."""

    def __init__(self, network: MemoryNetwork, sender: PeerId, receiver: PeerId) -> None:
        self._network = network
        self._sender = sender
        self._receiver = receiver
        self._pieces: deque[tuple[float, bytes]] = deque()
        self._size = 0
        self._ended = False
        self._broken = False
        self._changed = trio.lowlevel.ParkingLot()

    def end(self) -> None:
        """No more bytes will be written; what is on its way still arrives."""
        self._ended = True
        self._changed.unpark_all()

    def snap(self) -> None:
        """Lose everything: both ends fail from now on."""
        self._broken = True
        self._pieces.clear()
        self._changed.unpark_all()
        self._network.wake()

    async def put(self, data: memoryview) -> None:
        while data:
            while self._size >= CAPACITY and not (self._broken or self._ended):
                await self._changed.park()
            if self._broken or self._ended:
                raise trio.BrokenResourceError("the other side is gone")
            piece = bytes(data[: CAPACITY - self._size])
            data = data[len(piece) :]
            self._pieces.append((trio.current_time() + self._network.latency, piece))
            self._size += len(piece)
            self._changed.unpark_all()

    async def take(self, limit: int) -> bytes:
        while True:
            if self._broken:
                raise trio.BrokenResourceError("the other side is gone")
            if self._network.silent(self._sender, self._receiver):
                await self._network.wait_change()
            elif self._pieces and self._pieces[0][0] <= trio.current_time():
                return self._pop(limit)
            elif self._pieces:
                with trio.move_on_at(self._pieces[0][0]):
                    await self._changed.park()
            elif self._ended:
                return b""
            else:
                await self._changed.park()

    def _pop(self, limit: int) -> bytes:
        ready, piece = self._pieces.popleft()
        if len(piece) > limit:
            self._pieces.appendleft((ready, piece[limit:]))
            piece = piece[:limit]
        self._size -= len(piece)
        self._changed.unpark_all()
        return piece


class MemoryChannel(Channel):
    """One end of a channel."""

    carrier = "memory"

    def __init__(self, peer_id: PeerId, remote_address: str, outgoing: _Pipe, incoming: _Pipe) -> None:
        self.peer_id = peer_id
        self.remote_address = remote_address
        self._outgoing = outgoing
        self._incoming = incoming
        self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        await self._outgoing.put(memoryview(data))

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await trio.lowlevel.checkpoint()
        self._check_open()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        try:
            return await self._incoming.take(max_bytes or CAPACITY)
        except trio.BrokenResourceError:
            self._check_open()
            raise

    async def aclose(self) -> None:
        """A clean end: the other side still reads what was written."""
        if not self._closed:
            self._closed = True
            self._outgoing.end()
            self._incoming.snap()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """See `Channel.abort`. After `aclose` it takes nothing back."""
        if self._closed:
            return
        self._closed = True
        self._outgoing.snap()
        self._incoming.snap()

    @property
    def closed(self) -> bool:
        """True once this side closed or aborted it."""
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("this channel was closed on our side")


class MemoryTransport(Transport):
    """A peer on a `MemoryNetwork`, at `/memory/<number>/p2p/<id>`."""

    def __init__(
        self, identity: Identity, network: MemoryNetwork, *, number: int | None = None, seen_as: str | None = None
    ) -> None:
        """`number` takes a stated place instead of a free one; `seen_as` is the remote address that others see."""
        self.identity = identity
        self._network = network
        free = network.attach(self)
        self._address = f"/memory/{free if number is None else number}"
        self.seen_as = seen_as or self._address
        self._nursery: trio.Nursery | None = None
        self._handler: Handler | None = None
        self._channels: list[MemoryChannel] = []
        self._dead = False
        self.failures: deque[Exception] = deque(maxlen=64)
        """What handlers raised, newest last: a test looks here for surprises."""

    @property
    def addresses(self) -> list[str]:
        """See `Transport.addresses`."""
        return [f"{self._address}/p2p/{self.identity.peer_id}"]

    async def run(self, handler: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Transport.run`."""
        listeners = self._network.listeners
        address = self.addresses[0]
        if any(taken.startswith(f"{self._address}/p2p/") for taken in listeners):
            raise Misconfigured(f"{self._address} is taken; choose another number")
        listeners[address] = self
        self._handler = handler
        try:
            async with trio.open_nursery() as self._nursery:
                task_status.started()
                await trio.sleep_forever()
        finally:
            if listeners.get(address) is self:
                del listeners[address]
            for channel in self._channels:
                channel.abort()

    async def dial(self, addresses: Sequence[str]) -> Channel:
        """See `Transport.dial`."""
        failures = []
        for address in addresses:
            with trio.move_on_after(CONNECT_LIMIT):
                failure = await self._reach(address)
                if isinstance(failure, Channel):
                    return failure
                failures.append(f"{address}: {failure}")
                continue
            failures.append(f"{address}: no answer within {CONNECT_LIMIT:g} s")
        raise Unavailable("no address answered: " + ("; ".join(failures) or "none was given"))

    def die(self) -> None:
        """What `MemoryNetwork.kill` does to one transport."""
        self._dead = True
        if self._network.listeners.get(self.addresses[0]) is self:
            del self._network.listeners[self.addresses[0]]
        for channel in self._channels:
            channel.abort()

    async def _reach(self, address: str) -> MemoryChannel | str:
        await trio.sleep(2 * self._network.latency)
        ours = self.identity.peer_id
        other = self._network.listeners.get(address)
        if self._dead or other is None:
            return "connection refused"
        theirs = other.identity.peer_id
        while self._network.silent(ours, theirs):
            await self._network.wait_change()
        there, back = _Pipe(self._network, ours, theirs), _Pipe(self._network, theirs, ours)
        near = MemoryChannel(theirs, other.seen_as, there, back)
        other.accept(MemoryChannel(ours, self.seen_as, back, there))
        self._keep(near)
        return near

    def accept(self, channel: MemoryChannel) -> None:
        """Serve a channel that another transport opened."""
        assert self._nursery is not None
        self._keep(channel)
        self._nursery.start_soon(self._serve, channel)

    def _keep(self, channel: MemoryChannel) -> None:
        self._channels = [kept for kept in self._channels if not kept.closed]
        self._channels.append(channel)

    async def _serve(self, channel: MemoryChannel) -> None:
        assert self._handler is not None
        try:
            await self._handler(channel)
        except Exception as error:  # noqa: BLE001 - rule of the interface: a handler's failure ends its channel alone
            self.failures.append(error)
            channel.abort()
        await channel.aclose()
