"""The connections over which this peer asks others in the DHT.

1. They are connections of their own: they carry no link, and a link never waits for them.
2. One to a peer, at most `MAX_CALLS` in all; the one that was quiet longest makes room. One is closed after `QUIET` seconds.
3. Two that want the same peer wait for one dial.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from libp2p.abc import INetStream

    from mesh.identity import PeerId
    from mesh.transport.libp2p.connection import Connection

MAX_CALLS = 32
QUIET = 15.0
SWEEP = 5.0


class Calls:
    """`dial` opens a connection to a peer at one of its addresses; `fit` raises when it must not be used."""

    def __init__(
        self,
        dial: Callable[[Sequence[str]], Awaitable[Connection]],
        addresses: Callable[[PeerId], Sequence[str]],
        fit: Callable[[Connection], None],
    ) -> None:
        self._dial = dial
        self._addresses = addresses
        self._fit = fit
        # In order of use.
        self._open: dict[PeerId, tuple[Connection, float]] = {}
        self._locks: dict[PeerId, trio.Lock] = {}

    def __len__(self) -> int:
        """Connections open."""
        return len(self._open)

    @property
    def peers(self) -> list[PeerId]:
        """Whom we are connected to."""
        return [peer_id for peer_id, (connection, _) in self._open.items() if not connection.closed]

    async def stream(self, peer_id: PeerId, protocol: str) -> INetStream:
        """A stream to a peer. Raises LookupError when no address of it is known, and what dialling and py-libp2p raise."""
        connection = await self._connection(peer_id)
        self._open[peer_id] = (connection, trio.current_time())
        try:
            return await connection.open(protocol)
        except BaseException:
            # Whatever it was, also a cancellation in the middle: the next question gets a fresh one.
            self.hang_up(peer_id)
            raise

    def hang_up(self, peer_id: PeerId) -> None:
        """End the connection to a peer at once."""
        if peer_id in self._open:
            self._open.pop(peer_id)[0].abort()

    async def run(self) -> None:
        """Close what is quiet, until cancelled."""
        while True:
            await trio.sleep(SWEEP)
            quiet = trio.current_time() - QUIET
            for peer_id in [one for one, (connection, used) in self._open.items() if connection.closed or used < quiet]:
                self.hang_up(peer_id)

    async def _connection(self, peer_id: PeerId) -> Connection:
        lock = self._locks.setdefault(peer_id, trio.Lock())
        try:
            async with lock:
                connection, _ = self._open.pop(peer_id, (None, 0.0))
                return connection if connection is not None and not connection.closed else await self._connect(peer_id)
        finally:
            if not lock.statistics().tasks_waiting:
                self._locks.pop(peer_id, None)

    async def _connect(self, peer_id: PeerId) -> Connection:
        addresses = self._addresses(peer_id)
        if not addresses:
            raise LookupError(f"no address of {peer_id} is known")
        connection = await self._dial(addresses)
        try:
            self._fit(connection)
        except BaseException:
            connection.abort()
            raise
        connection.forbid_channels()
        while len(self._open) >= MAX_CALLS:
            self.hang_up(next(iter(self._open)))
        self._open[peer_id] = (connection, trio.current_time())
        return connection
