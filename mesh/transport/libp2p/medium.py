"""The bytes below a connection, in the shape that py-libp2p reads from and writes to, whatever takes them further.

1. A write never waits and is never cut short: what is not taken at once is kept and sent by `run`. So a cancelled task can never
   leave half of an encrypted message behind, which would end the connection for everybody on it.
2. Backpressure is `drained`, to be awaited before a write. What piles up all the same is bounded by `MAX_BACKLOG`.
3. A read gives all the bytes that were asked for, fewer only at the end: py-libp2p gives up after 100 pieces of one message.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import trio
from libp2p.io.exceptions import ConnectionClosedError

if TYPE_CHECKING:
    from mesh.identity import PeerId
    from mesh.transport.base import Carrier as Kind

MAX_BACKLOG = 4 * 1024 * 1024
"""Bytes written and not taken further. Only a peer that stops reading while we answer its own questions gets here."""

STALL = 20.0
"""Seconds without any progress of something that we want to write to."""

READ_SIZE = 64 * 1024


class Medium(ABC):
    """`run` must be running once anything is written."""

    kind: Kind = "libp2p"
    via: PeerId | None = None

    def __init__(self) -> None:
        self._received = bytearray()
        self._backlog = bytearray()
        self._backlog_grew = trio.Event()
        self._backlog_shrank = trio.lowlevel.ParkingLot()
        self.taken = False
        """True when the connection has its channel."""
        self.closed = False
        self.broken = False
        """True when the bytes were lost, rather than ended or closed by us."""

    @property
    @abstractmethod
    def remote_address(self) -> str:
        """Where the other side is, as a multiaddr."""

    @abstractmethod
    def get_remote_address(self) -> tuple[str, int]:
        """For py-libp2p: host and port of the other side."""

    @abstractmethod
    async def run(self) -> None:
        """Send what was kept, until the connection is closed."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once and drop what is unsent."""

    @abstractmethod
    def close_now(self) -> None:
        """Close; what was sent before still travels. May be called twice."""

    @abstractmethod
    def _flush(self) -> None:
        """Send as much of the backlog as is taken at once."""

    @abstractmethod
    async def _receive(self) -> bytes:
        """Some bytes as they came; none at the end. Raises ConnectionClosedError."""

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

    async def close(self) -> None:
        """For py-libp2p: close; what was sent before still travels."""
        self.close_now()
        await trio.lowlevel.checkpoint()

    def _wake(self) -> None:
        """After closing: nobody waits any more."""
        self._backlog.clear()
        self._backlog_grew.set()
        self._backlog_shrank.unpark_all()
