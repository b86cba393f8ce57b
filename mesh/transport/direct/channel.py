"""A channel over one TLS connection.

1. A cancelled `send_all` leaves half a record behind: the channel is lost then. A link never cancels one but to end itself.
2. A link marks its ends itself: the end of the connection reads as `b""`.
3. A clean close ends our sending direction, then reads and drops what still comes until the other side ends too, for at most
   `CLOSE_GRACE` seconds: closing a socket with unread bytes would take back our last words.
4. `abort` closes the raw socket at once, unsent bytes included.
"""

from __future__ import annotations

import socket
import struct
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from mesh.transport.base import Channel
from mesh.transport.libp2p.addresses import remote_multiaddr
from mesh.transport.sockets import prepare

if TYPE_CHECKING:
    from mesh.identity import PeerId
    from mesh.transport.direct.tls import TlsStream

CLOSE_GRACE = 1.0
_READ_SIZE = 64 * 1024
_LINGER_NONE = struct.pack("ii", 1, 0)
_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)


class DirectChannel(Channel):
    """See the head of this file. Takes over a connection whose handshake is done."""

    carrier = "direct"

    def __init__(self, stream: TlsStream, peer_id: PeerId) -> None:
        """Raises OSError when the connection is gone already."""
        self.peer_id = peer_id
        self._tls = stream
        self.remote_address = remote_multiaddr(*stream.socket.getpeername()[:2])
        prepare(stream.socket)
        self._closing = False
        self._finished = False
        self._reading = False
        self._reader_left = trio.Event()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.abc.ReceiveStream` says."""
        self._check_open()
        self._reading = True
        try:
            data = await self._tls.receive_some(max_bytes)
            while data and self._closing:
                data = await self._tls.receive_some(max_bytes)
            self._finished = not data
        finally:
            self._reading = False
            self._reader_left.set()
        self._check_open()
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream` says."""
        self._check_open()
        await self._tls.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream` says."""
        await self._tls.wait_writable()

    async def aclose(self) -> None:
        """End the connection, cleanly when that takes no longer than `CLOSE_GRACE`."""
        try:
            if not self._closing:
                self._closing = True
                with trio.move_on_after(CLOSE_GRACE), suppress(*_LOST, trio.BusyResourceError):
                    self._tls.send_eof()
                    await self._read_rest()
        finally:
            self.abort()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """As `Channel` says."""
        self._closing = True
        if not self._finished:
            # Without lingering: bytes for a peer that hangs would occupy the kernel for minutes.
            with suppress(OSError):
                self._tls.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NONE)
        self._tls.close()

    def _check_open(self) -> None:
        if self._closing:
            raise trio.ClosedResourceError("this channel was closed")

    async def _read_rest(self) -> None:
        if self._reading:
            self._reader_left = trio.Event()
            await self._reader_left.wait()
        else:
            while await self._tls.receive_some(_READ_SIZE):
                pass
            self._finished = True
