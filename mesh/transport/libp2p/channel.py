"""A channel: one stream on one connection of py-libp2p, which lives and dies with it.

1. The stream is read by one task (`run`) into a buffer. So a cancelled `receive_some` loses nothing: in py-libp2p it would lose
   bytes and end the connection.
2. The buffer is bounded. When its reader pauses, `run` pauses too and the other side's `send_all` waits, for as long as it takes.
   The stock stream is lost after 5 s of that.
3. `send_all` gives py-libp2p only what the window of the stream takes. It waits outside of it, where waiting can be cancelled.
4. A clean close says so to the other side and waits `CLOSE_GRACE` seconds for it to do the same. Then the connection goes too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.stream.exceptions import StreamEOF

from mesh.identity import PeerId, public_key_of
from mesh.transport.base import Channel
from mesh.transport.libp2p.tamed import MAX_PAYLOAD, carrier_of

if TYPE_CHECKING:
    from libp2p.abc import INetStream

READ_AHEAD = 1024 * 1024
"""Bytes read and not yet asked for. What a peer can send beyond it waits in the windows below (see `tamed`)."""

CLOSE_GRACE = 1.0
"""Seconds that a clean close may take."""

_UNSENT = 256 * 1024
_WINDOW_POLL = 0.005


class Libp2pChannel(Channel):
    """See the head of this file. `run` must be running."""

    def __init__(self, stream: INetStream) -> None:
        self._stream = stream
        self._window = stream.muxed_stream
        self._carrier = carrier_of(stream.muxed_conn)
        self._received = bytearray()
        self._changed = trio.lowlevel.ParkingLot()
        self._ended = trio.Event()
        self._closing = False
        self._finished = False
        self.closed = trio.Event()
        self.peer_id = PeerId(str(stream.muxed_conn.peer_id))
        public_key_of(self.peer_id)
        self.remote_address = self._carrier.remote_address
        self.carrier = self._carrier.kind
        self.via = self._carrier.via

    async def run(self) -> None:
        """Read until the stream ends or the channel is closed."""
        try:
            while data := await self._stream.read(MAX_PAYLOAD):
                if self._closing:
                    continue
                self._received += data
                self._changed.unpark_all()
                while len(self._received) >= READ_AHEAD and not self._closing:
                    await self._changed.park()
        except StreamEOF:
            pass
        except BaseLibp2pError:
            self._carrier.broken = True
        finally:
            self._ended.set()
            self._changed.unpark_all()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """As `trio.abc.ReceiveStream` says."""
        await trio.lowlevel.checkpoint()
        while not self._received and not self._ended.is_set() and not self._closing:
            await self._changed.park()
        if self._closing:
            raise trio.ClosedResourceError("this channel was closed")
        data = bytes(self._received[:max_bytes])
        del self._received[: len(data)]
        self._changed.unpark_all()
        if not data and max_bytes != 0 and self._carrier.broken:
            raise trio.BrokenResourceError("the connection broke")
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """As `trio.abc.SendStream` says."""
        rest = memoryview(data)
        await self._wait_to_send()
        while rest:
            size = min(len(rest), self._window.send_window, MAX_PAYLOAD)
            await self._write(bytes(rest[:size]))
            rest = rest[size:]
            if rest:
                await self._wait_to_send()

    async def wait_send_all_might_not_block(self) -> None:
        """As `trio.abc.SendStream` says."""
        await self._wait_to_send()

    async def aclose(self) -> None:
        """End the stream and the connection, cleanly when that takes no longer than `CLOSE_GRACE`."""
        try:
            if not self._closing:
                self._close_reading()
                with trio.move_on_after(CLOSE_GRACE):
                    await self._finish()
        finally:
            self.abort()
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """As `Channel` says."""
        self._close_reading()
        if self._finished:
            self._carrier.close_now()
        else:
            self._carrier.abort()
        self.closed.set()

    def _close_reading(self) -> None:
        self._closing = True
        self._received.clear()
        self._changed.unpark_all()

    async def _finish(self) -> None:
        try:
            await self._stream.close_write()
            await self._carrier.drained()
        except BaseLibp2pError:
            return
        await self._ended.wait()
        self._finished = True

    async def _wait_to_send(self) -> None:
        await self._carrier.drained(_UNSENT)
        # py-libp2p has no event for this; a window is only ever empty when the other side is slower than we are.
        while self._window.send_window <= 0 and self._can_send():  # noqa: ASYNC110 - see above
            await trio.sleep(_WINDOW_POLL)
        if self._closing:
            raise trio.ClosedResourceError("this channel was closed")
        if not self._can_send():
            raise trio.BrokenResourceError("the other side is gone")

    def _can_send(self) -> bool:
        return not (self._closing or self._carrier.closed or self._window.closed or self._window.send_closed)

    async def _write(self, data: bytes) -> None:
        try:
            # It has only locks to wait for, each held for a moment. Between taking from the window and sending it must not stop.
            with trio.CancelScope(shield=True):
                await self._stream.write(data)
        except BaseLibp2pError as error:
            raise trio.BrokenResourceError("the other side is gone") from error
