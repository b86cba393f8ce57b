"""Two streams that are one: what comes from either goes to the other.

1. Nothing is kept: the next piece is read when the last one is on its way, so a slow end slows the other one down.
2. Each direction has a rate; a pause after every piece keeps it, `BURST` seconds of it excepted.
3. It ends when either stream ends, when the pair has used up its bytes, or when nothing moved for a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from mesh.relay.bounds import RelayBounds
    from mesh.relay.ledger import Ledger
    from mesh.transport.base import Channel

PIECE = 64 * 1024
BURST = 0.25
_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)


class Circuit:
    """See the head of this file. `one` asked for it."""

    def __init__(self, one: Channel, other: Channel, bounds: RelayBounds, ledger: Ledger) -> None:
        self.ends = (one.peer_id, other.peer_id)
        self.passed = 0
        """Bytes in both directions."""
        self._one = one
        self._other = other
        self._bounds = bounds
        self._ledger = ledger
        self._scope = trio.CancelScope()
        self._why = ""

    async def run(self) -> str:
        """Copy until the end, then close both streams. Why it ended."""
        try:
            self._moved()
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._copy, self._one, self._other)
                    nursery.start_soon(self._copy, self._other, self._one)
            await self._close()
        finally:
            self._one.abort()
            self._other.abort()
        return self._why or f"nothing moved for {self._bounds.idle:g} s"

    def end(self, why: str) -> None:
        """Close both streams soon. The first reason counts."""
        self._why = self._why or why
        self._scope.cancel()

    async def _close(self) -> None:
        # The last words of the end that left are still on their way to the one that stays.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._one.aclose)
            nursery.start_soon(self._other.aclose)

    async def _copy(self, source: Channel, sink: Channel) -> None:
        pace = _Pace(self._bounds.rate)
        try:
            while data := await source.receive_some(PIECE):
                if not self._ledger.spend(*self.ends, len(data)):
                    self.end(f"it used up its {self._bounds.total} bytes")
                await sink.send_all(data)
                self.passed += len(data)
                self._moved()
                await pace.keep(len(data))
        except _LOST:
            pass
        self.end("one end left")

    def _moved(self) -> None:
        self._scope.deadline = trio.current_time() + self._bounds.idle


class _Pace:
    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._due = trio.current_time()

    async def keep(self, size: int) -> None:
        """Wait until bytes that were just sent fit into the rate."""
        now = trio.current_time()
        self._due = max(self._due, now) + size / self._rate
        if self._due > now + BURST:
            await trio.sleep_until(self._due)
