"""TLS over one connected socket, for one task that reads and one that writes.

1. What the socket takes at once goes out in the very call: nothing is scheduled for a write. `trio.SSLStream` schedules several
   times for each, which costs more than the encryption.
2. A cancelled `send_all` may leave half a record behind: the connection is lost then. A cancelled read loses nothing.
3. TLS's own end mark is not used: the end of the connection reads as `b""`.
4. The system holds at most about `UNSENT` bytes that it has not sent yet, so that a heartbeat does not wait behind megabytes.
"""

from __future__ import annotations

import errno
import socket
import ssl
from contextlib import suppress

import trio

READ_SIZE = 64 * 1024
UNSENT = 128 * 1024


class TlsStream:
    """See the head of this file."""

    def __init__(self, tcp: trio.SocketStream, context: ssl.SSLContext, *, server_side: bool = False) -> None:
        """Takes the socket over from `tcp`. `close` is due even when the handshake fails."""
        # A plain socket, because trio's own has no way to send without scheduling.
        self.socket = socket.socket(fileno=tcp.socket.detach())
        self.socket.setblocking(False)
        with suppress(OSError, AttributeError):  # not every system knows it
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=server_side)

    async def do_handshake(self) -> None:
        """Shake hands. Raises BrokenResourceError when it fails."""
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._fill()
            except ssl.SSLError as error:
                raise _broken(error) from error
            else:
                await self._flush()
                return

    def getpeercert(self) -> bytes:
        """The other side's certificate (DER), or nothing."""
        return self._tls.getpeercert(binary_form=True) or b""

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.abc.ReceiveStream` says."""
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            try:
                return self._tls.read(max_bytes or READ_SIZE)
            except ssl.SSLWantReadError:
                await self._fill()
            except (ssl.SSLEOFError, ssl.SSLZeroReturnError):
                return b""
            except ssl.SSLError as error:
                raise _broken(error) from error

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of it. Waits, and lets others run, only when the socket is full."""
        await trio.lowlevel.checkpoint_if_cancelled()
        if not data:
            return
        try:
            self._tls.write(data)
        except ssl.SSLError as error:
            raise _broken(error) from error
        await self._flush()

    async def wait_writable(self) -> None:
        """Wait until the socket takes something."""
        await trio.lowlevel.wait_writable(self.socket)

    def send_eof(self) -> None:
        """End our direction, when the connection still stands."""
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Close the socket and wake whoever waits for it. May be called twice."""
        if self.socket.fileno() >= 0:
            trio.lowlevel.notify_closing(self.socket)
            self.socket.close()

    async def _flush(self) -> None:
        rest = memoryview(self._outgoing.read())
        while rest:
            try:
                rest = rest[self.socket.send(rest) :]
            except BlockingIOError:
                pass
            except OSError as error:
                raise _broken(error) from error
            if rest:
                await self.wait_writable()

    async def _fill(self) -> None:
        # Every turn waits, so a peer that floods us cannot keep other tasks from running.
        await trio.lowlevel.wait_readable(self.socket)
        try:
            data = self.socket.recv(READ_SIZE)
        except BlockingIOError:
            return
        except OSError as error:
            raise _broken(error) from error
        if data:
            self._incoming.write(data)
        else:
            self._incoming.write_eof()


def _broken(error: OSError) -> Exception:
    if error.errno == errno.EBADF:
        return trio.ClosedResourceError("this connection was closed")
    return trio.BrokenResourceError(f"the connection broke: {error.strerror or error}")
