"""The one task that writes on a link.

1. Everything pending goes out as one frame, up to `FRAME_TARGET` bytes or one larger message; a due heartbeat goes first.
2. `put` never blocks. `MAX_PENDING` bytes unwritten, or a frame that takes too long, mean that the other side does not read: the
   channel is aborted.
3. A write is never cancelled on behalf of a request: only the end of the whole link interrupts it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mesh.framing import FrameError, frame
from mesh.link.codec import MAX_MESSAGE, join

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.transport.base import Channel

FRAME_TARGET = 256 * 1024
MAX_PENDING = 8 * 1024 * 1024
STALL_LIMIT = 10.0
"""Seconds that a frame may take, and one more for every `SLOWEST` bytes of it."""
SLOWEST = 100_000


@dataclass(slots=True)
class Account:
    """Bytes of one request that are queued and not yet written."""

    queued: int = 0


class LinkWriter:
    """Queue and task. `heartbeat` makes the encoded heartbeat at the moment it is written, so that its times are true."""

    def __init__(self, channel: Channel, heartbeat: Callable[[], bytes]) -> None:
        self.pending = 0
        self.stuck = False
        self._channel = channel
        self._heartbeat = heartbeat
        self._queue: deque[tuple[bytes, Account | None]] = deque()
        self._beat_due = False
        self._finishing = False
        self._work = trio.Event()
        self._room = trio.Event()

    def put(self, message: bytes, account: Account | None = None) -> None:
        """Queue one encoded message. Aborts the channel when too much is pending; after that, drops it."""
        if len(message) > MAX_MESSAGE:
            raise FrameError(f"a message of {len(message)} bytes is over the limit of {MAX_MESSAGE}")
        if self.stuck:
            return
        if self.pending >= MAX_PENDING:
            self._give_up()
            return
        self._queue.append((message, account))
        self.pending += len(message)
        if account is not None:
            account.queued += len(message)
        self._work.set()

    def beat(self) -> None:
        """Send a heartbeat before anything else that is pending."""
        self._beat_due = True
        self._work.set()

    async def room(self) -> None:
        """Wait until less than half of the bound is pending. For those that may wait, so that they do not abort the link."""
        while self.pending > MAX_PENDING // 2 and not self.stuck:
            await self._room.wait()

    async def flush(self) -> None:
        """Wait until nothing is pending or the link ended."""
        while self.pending and not self.stuck:
            await self._room.wait()

    def finish(self) -> None:
        """Let `run` return once everything pending is written."""
        self._finishing = True
        self._work.set()

    async def run(self) -> None:
        """Write until `finish`. Raises BrokenResourceError when the channel is lost or the other side does not read."""
        while True:
            await self._work.wait()
            self._work = trio.Event()
            while self._queue or self._beat_due:
                await self._write(self._take())
            if self._finishing:
                return

    def _take(self) -> list[tuple[bytes, Account | None]]:
        batch: list[tuple[bytes, Account | None]] = []
        size = 0
        if self._beat_due:
            self._beat_due = False
            beat = self._heartbeat()
            batch.append((beat, None))
            self.pending += len(beat)
            size = len(beat)
        while self._queue and (not size or size + len(self._queue[0][0]) <= FRAME_TARGET):
            batch.append(self._queue.popleft())
            size += len(batch[-1][0])
        return batch

    async def _write(self, batch: list[tuple[bytes, Account | None]]) -> None:
        data = frame(join([message for message, _ in batch]))
        with trio.move_on_after(STALL_LIMIT + len(data) / SLOWEST) as limit:
            await self._channel.send_all(data)
        if limit.cancelled_caught:
            self._give_up()
            raise trio.BrokenResourceError("the other side does not read")
        for message, account in batch:
            self.pending -= len(message)
            if account is not None:
                account.queued -= len(message)
        self._room.set()
        self._room = trio.Event()

    def close(self) -> None:
        """Drop what is pending and release those who wait for room: the link ended."""
        self.stuck = True
        self._queue.clear()
        self.pending = 0
        self._room.set()

    def _give_up(self) -> None:
        self.close()
        self._channel.abort()
