"""The bytes below a connection: one TCP socket.

1. What `medium.py` says of reading and writing.
2. `abort` closes the socket at once and wakes everybody. A socket that takes nothing for `STALL` seconds is aborted.
"""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress

import trio
from libp2p.io.exceptions import ConnectionClosedError

from mesh.transport.libp2p.addresses import remote_multiaddr
from mesh.transport.libp2p.medium import READ_SIZE, STALL, Medium
from mesh.transport.sockets import prepare

_LINGER_NONE = struct.pack("ii", 1, 0)


class Carrier(Medium):
    """One connected TCP socket. `run` must be running once anything is written."""

    websocket = False

    def __init__(self, stream: trio.SocketStream) -> None:
        """Takes the socket over from `stream`. Raises OSError, and takes nothing, when it is not connected any more."""
        super().__init__()
        self._remote: tuple[str, int] = stream.socket.getpeername()[:2]
        prepare(stream.socket)
        # A plain socket, because trio's own has no way to send without waiting.
        self._socket = socket.socket(fileno=stream.socket.detach())
        self._socket.setblocking(False)

    @property
    def remote_address(self) -> str:
        """As `Medium` says."""
        return remote_multiaddr(*self._remote, websocket=self.websocket)

    def get_remote_address(self) -> tuple[str, int]:
        """As `Medium` says."""
        return self._remote

    async def run(self) -> None:
        """As `Medium` says."""
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

    def abort(self) -> None:
        """As `Medium` says."""
        if not self.closed:
            # Without lingering: bytes for a peer that hangs would occupy the kernel for minutes.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
            self.close_now()

    def close_now(self) -> None:
        """As `Medium` says: the system still sends what it has taken."""
        if self.closed:
            return
        self.closed = True
        trio.lowlevel.notify_closing(self._socket)
        self._socket.close()
        self._wake()

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
                return self._socket.recv(READ_SIZE)
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
