"""One stream of the DHT, as py-libp2p reads and writes it, with bounds.

1. At most `limit` bytes are read from it, and each read or write waits at most `patience` seconds.
2. A read or write that is cancelled, or waited for in vain, leaves the connection in an unknown state: `broken` is called. That
   the other side ends the stream is no such case.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from libp2p.abc import IMuxedConn, INetStream


class BoundedStream:
    """What py-libp2p's Kademlia takes for a stream. `answered` is called at the first bytes, `broken` by rule 2."""

    metric_send_channel = None

    def __init__(
        self,
        stream: INetStream,
        *,
        limit: int,
        patience: float,
        broken: Callable[[bool], None] = lambda _late: None,
        answered: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`broken` is told True when the other side was too slow, False when we gave up ourselves."""
        self._stream = stream
        self._left = limit
        self._patience = patience
        self._broken = broken
        self._answered = answered

    @property
    def muxed_conn(self) -> IMuxedConn:
        """What it runs on: says whose it is."""
        return self._stream.muxed_conn

    async def read(self, size: int | None = None) -> bytes:
        """Some bytes, at most `size`. Raises ValueError over the limit, TooSlowError, and what py-libp2p raises."""
        if self._left <= 0:
            raise ValueError("the other side says too much")
        data: bytes = await self._within(lambda: self._stream.read(min(size or self._left, self._left)))
        self._left -= len(data)
        if data and self._answered is not None:
            answered, self._answered = self._answered, None
            await answered()
        return data

    async def write(self, data: bytes) -> None:
        """Send all of it. Raises TooSlowError, and what py-libp2p raises."""
        await self._within(lambda: self._stream.write(data))

    async def close(self) -> None:
        """Send no more."""
        await self._stream.close()

    async def reset(self) -> None:
        """End it at once."""
        await self._stream.reset()

    async def _within(self, act: Callable[[], Awaitable[Any]]) -> Any:
        try:
            with trio.fail_after(self._patience):
                return await act()
        except trio.TooSlowError:
            self._broken(True)
            raise
        except trio.Cancelled:
            self._broken(False)
            raise
