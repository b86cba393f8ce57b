"""What waits to be sent to one client.

1. Bytes go straight to the socket while it takes them. When it is full they queue, and a task sends all of them as one write.
2. A client that takes nothing for `stall_seconds` is lost. So is one whose socket fails.
3. Nothing here is shielded: cancelling the connection ends it at once, whatever the client does.
"""

from __future__ import annotations

import contextlib
import socket
from collections import deque
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

_Bytes = bytes | memoryview


class Output:
    """The sending half of one connection. `lost` is called once, with the reason, when nothing can be sent any more."""

    def __init__(
        self, connection: socket.socket, nursery: trio.Nursery, *, stall_seconds: float, lost: Callable[[str], None]
    ) -> None:
        self.pending = 0
        """Bytes that the socket has not taken yet."""
        self._socket = connection
        self._nursery = nursery
        self._stall_seconds = stall_seconds
        self._on_lost = lost
        self._queue: deque[_Bytes] = deque()
        self._sending = False
        self._lost = False
        self._empty = trio.Event()

    def write(self, data: bytes) -> None:
        """Send or queue. Never blocks and never raises; goes nowhere once the client is lost."""
        if self._lost:
            return
        rest = data if self._queue else self._send(data)
        if not rest:
            return
        self._queue.append(rest)
        self.pending += len(rest)
        if not self._sending:
            self._sending = True
            self._empty = trio.Event()
            self._nursery.start_soon(self._send_queue)

    async def flushed(self) -> None:
        """Wait until the socket has taken everything; bounded by the stall limit, which cancels the connection."""
        if self._sending:
            await self._empty.wait()

    def shutdown(self) -> None:
        """Tell the client that nothing more will come."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def lose(self, reason: str) -> None:
        """Give the client up: drop what waits and tell the owner."""
        if self._lost:
            return
        self._lost = True
        self._queue.clear()
        self.pending = 0
        self._on_lost(reason)

    async def _send_queue(self) -> None:
        while self._queue:
            with trio.move_on_after(self._stall_seconds) as patience:
                await trio.lowlevel.wait_writable(self._socket)
            if patience.cancelled_caught:
                self.lose(f"read nothing for {self._stall_seconds:g} s")
                break
            pending = self._queue[0] if len(self._queue) == 1 else b"".join(self._queue)
            self._queue.clear()
            rest = self._send(pending)
            if rest:
                self._queue.append(rest)
            self.pending = len(rest)
        self._sending = False
        self._empty.set()

    def _send(self, data: _Bytes) -> _Bytes:
        """What the socket did not take."""
        try:
            sent = self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self.lose(f"went away: {error.strerror}")
            return b""
        return b"" if sent == len(data) else memoryview(data)[sent:]
