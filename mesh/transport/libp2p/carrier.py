"""The bytes below a connection: one TCP socket, in the shape that py-libp2p reads from and writes to.

1. A write never waits and is never cut short: what the socket does not take at once is kept and sent by `run`. So a cancelled
   task can never leave half of an encrypted message behind, which would end the connection for everybody on it.
2. Backpressure is `drained`, to be awaited before a write. What piles up all the same is bounded by `MAX_BACKLOG`.
3. A read gives all the bytes that were asked for, fewer only at the end: py-libp2p gives up after 100 pieces of one message.
4. `abort` closes the socket at once and wakes everybody. A socket that takes nothing for `STALL` seconds is aborted.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress

import trio
from libp2p.io.exceptions import ConnectionClosedError

from mesh.transport.libp2p.addresses import remote_multiaddr

MAX_BACKLOG = 4 * 1024 * 1024
"""Bytes written and not taken by the socket. Only a peer that stops reading while we answer its own questions gets here."""

STALL = 20.0
"""Seconds without any progress of a socket that we want to write to."""

_READ_SIZE = 64 * 1024
_LINGER_NONE = struct.pack("ii", 1, 0)


class Carrier:
    """One connected TCP socket. `run` must be running once anything is written."""

    websocket = False

    def __init__(self, stream: trio.SocketStream) -> None:
        """Takes the socket over from `stream`. Raises OSError, and takes nothing, when it is not connected any more."""
        self._remote: tuple[str, int] = stream.socket.getpeername()[:2]
        stream.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        # A plain socket, because trio's own has no way to send without waiting.
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)
        self._received = bytearray()
        self._backlog = bytearray()
        self._backlog_grew = trio.Event()
        self._backlog_shrank = trio.lowlevel.ParkingLot()
        self.taken = False
        """True when the connection has its channel."""
        self.closed = False
        self.broken = False
        """True when the socket failed, rather than ended or was closed by us."""

    @property
    def remote_address(self) -> str:
        """Where the other side is, as a multiaddr."""
        return remote_multiaddr(*self._remote, websocket=self.websocket)

    def get_remote_address(self) -> tuple[str, int]:
        """For py-libp2p: host and port of the other side."""
        return self._remote

    async def read(self, n: int | None = None) -> bytes:
        """Exactly `n` bytes, or what there is when `n` is None; fewer, or none, only at the end."""
        wanted = 1 if n is None else n
        while len(self._received) < wanted:
            data = await self._receive()
            if not data:
                wanted = len(self._received)
                break
            self._received += self.decode(data)
        size = len(self._received) if n is None else wanted
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def write(self, data: bytes) -> None:
        """Send all of `data`, later if need be."""
        self.send(self.encode(data))

    def send(self, data: bytes) -> None:
        """Send bytes as they are, now or later. Raises ConnectionClosedError after the end."""
        if self.closed:
            raise ConnectionClosedError("the connection is closed", transport="tcp")
        if len(self._backlog) + len(data) > MAX_BACKLOG:
            self.abort()
            raise ConnectionClosedError("the other side does not read", transport="tcp")
        self._backlog += data
        self._flush()

    def decode(self, data: bytes) -> bytes:
        """What received bytes carry. A subclass with a framing of its own answers here."""
        return data

    def encode(self, data: bytes) -> bytes:
        """How bytes travel. The opposite of `decode`."""
        return data

    async def drained(self, limit: int = 0) -> None:
        """Wait until at most `limit` bytes are unsent, or the connection is closed."""
        await trio.lowlevel.checkpoint()
        while len(self._backlog) > limit and not self.closed:
            await self._backlog_shrank.park()

    async def run(self) -> None:
        """Send what was kept, until the connection is closed."""
        while not self.closed:
            if not self._backlog:
                self._backlog_grew = trio.Event()
                await self._backlog_grew.wait()
                continue
            with trio.move_on_after(STALL) as patience:
                try:
                    await trio.lowlevel.wait_writable(self._socket)
                except trio.ClosedResourceError:
                    return
            if patience.cancelled_caught:
                self.abort()
                return
            with suppress(ConnectionClosedError):
                self._flush()

    async def close(self) -> None:
        """For py-libp2p: close the socket; what was sent before still travels."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Close the socket at once and drop what is unsent."""
        if not self.closed:
            # Without lingering: bytes for a peer that hangs would occupy the kernel for minutes.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            self.close_now()

    def close_now(self) -> None:
        """Close the socket; the system still sends what it has taken. May be called twice."""
        if self.closed:
            return
        self.closed = True
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._backlog.clear()
        self._backlog_grew.set()
        self._backlog_shrank.unpark_all()

    def _flush(self) -> None:
        if self.closed or not self._backlog:
            return
        try:
            with memoryview(self._backlog) as view:
                sent = self._socket.send(view)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._fail(error)
            raise ConnectionClosedError(f"the connection broke: {error}", transport="tcp") from error
        del self._backlog[:sent]
        if sent:
            self._backlog_shrank.unpark_all()
        if self._backlog:
            self._backlog_grew.set()

    async def _receive(self) -> bytes:
        # Every turn waits at least once, so a peer that floods us cannot keep other tasks from running.
        await trio.lowlevel.checkpoint()
        while not self.closed:
            try:
                return self._socket.recv(_READ_SIZE)
            except BlockingIOError:
                pass
            except OSError as error:
                self._fail(error)
                break
            try:
                await trio.lowlevel.wait_readable(self._socket)
            except trio.ClosedResourceError:
                break
        raise ConnectionClosedError("the connection is closed", transport="tcp")

    def _fail(self, error: OSError) -> None:
        self.broken = error.errno != errno.EBADF
        self.close_now()
