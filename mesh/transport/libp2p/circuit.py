"""The bytes below a connection: a stream that a relay joined with one of the peer at the other end.

1. What `medium.py` says of reading and writing. The relay sees what it passes on, so only connections with encryption go over it.
2. A clean close ends the stream to the relay cleanly, in `run`: what it has not passed on yet would be lost otherwise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.io.exceptions import ConnectionClosedError

from mesh.transport.libp2p.addresses import Address
from mesh.transport.libp2p.medium import READ_SIZE, STALL, Medium

if TYPE_CHECKING:
    from mesh.transport.base import Channel

_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)


class CircuitMedium(Medium):
    """Takes over `stream`, a channel to the relay on which nothing but the other end's bytes comes any more."""

    kind = "relay"

    def __init__(self, stream: Channel) -> None:
        super().__init__()
        self.via = stream.peer_id
        self._stream = stream
        self._sending = trio.CancelScope()
        self._aborted = False

    @property
    def remote_address(self) -> str:
        """The circuit: where the relay is, and which relay it is."""
        return f"{self._stream.remote_address}/p2p/{self.via}/p2p-circuit"

    def get_remote_address(self) -> tuple[str, int]:
        """Of the relay: nobody here knows where the other end is."""
        relay = Address.parse(self._stream.remote_address)
        return relay.host, relay.port

    async def run(self) -> None:
        """As `Medium` says."""
        try:
            with self._sending:
                await self._send_on()
            if not self._aborted:
                await self._stream.aclose()
        finally:
            self._stream.abort()

    def abort(self) -> None:
        """As `Medium` says."""
        self._aborted = True
        self._stream.abort()
        self.close_now()

    def close_now(self) -> None:
        """As `Medium` says."""
        if not self.closed:
            self.closed = True
            self._sending.cancel()
            self._wake()

    def _flush(self) -> None:
        self._backlog_grew.set()

    async def _send_on(self) -> None:
        while not self.closed:
            if not self._backlog:
                self._backlog_grew = trio.Event()
                await self._backlog_grew.wait()
                continue
            data = bytes(self._backlog[:READ_SIZE])
            with trio.move_on_after(STALL) as patience:
                try:
                    await self._stream.send_all(data)
                except _LOST:
                    self._fail()
                    return
            if patience.cancelled_caught:
                self.abort()
                return
            del self._backlog[: len(data)]
            self._backlog_shrank.unpark_all()

    async def _receive(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if not self.closed:
            try:
                return bytes(await self._stream.receive_some(READ_SIZE))
            except _LOST:
                self._fail()
        raise ConnectionClosedError("the connection is closed", transport="tcp")

    def _fail(self) -> None:
        self.broken = not self.closed
        self.close_now()
