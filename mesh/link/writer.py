"""The one task that writes on a link.

1. A frame has at most `FRAME_TARGET` bytes: a due heartbeat first, then control messages, then events, then one piece of a large
   message (`pieces.py`). So nothing waits for more than one frame because somebody else's message is large.
2. Messages keep their order within a lane, and a large message never overtakes an event that was queued before it. Whoever
   sends something that must not overtake a large message puts it into the same lane.
3. `put` never blocks. `MAX_PENDING` bytes unwritten, or a frame that takes too long (seen at the next `beat`), mean that the
   other side does not read: the channel is aborted. Those that can wait do so while the writer is `crowded`.
4. A write is never cancelled on behalf of a request: only the end of the whole link interrupts it.
"""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

import trio

from mesh.framing import FrameError, frame
from mesh.link.codec import MAX_MESSAGE, join
from mesh.link.pieces import PIECE, Cutter

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.transport.base import Channel

FRAME_TARGET = 64 * 1024
MAX_PENDING = 8 * 1024 * 1024
CROWDED = MAX_PENDING // 2
STALL_LIMIT = 10.0
"""Seconds that a frame may take, and one more for every `SLOWEST` bytes of it."""
SLOWEST = 100_000


class _Lane:
    """Small messages of one importance, in order."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.size = 0
        self.taken = 0
        """How many messages left it."""

    def take(self, limit: int, into: list[bytes]) -> int:
        """Move messages of up to `limit` bytes; how many bytes they have."""
        before = len(into)
        if self.size <= limit:
            size, self.size = self.size, 0
            into.extend(self.messages)
            self.messages.clear()
        else:
            size = 0
            while size + len(self.messages[0]) <= limit:
                size += len(self.messages[0])
                into.append(self.messages.popleft())
            self.size -= size
        self.taken += len(into) - before
        return size


class LinkWriter:
    """Queues and task. `heartbeat` makes the encoded heartbeat at the moment it is written, so that its times are true."""

    def __init__(self, channel: Channel, heartbeat: Callable[[], bytes]) -> None:
        self.pending = 0
        """Bytes queued and not yet written."""
        self.stuck = False
        self.pieces = False
        """Whether the other side takes large messages in pieces; else each is a frame of its own."""
        self._channel = channel
        self._heartbeat = heartbeat
        self._control = _Lane()
        self._events = _Lane()
        self._large: deque[tuple[Cutter, int]] = deque()
        """With each, how many events must have gone before."""
        self._beat_due = False
        self._write_limit = math.inf
        """When the frame that is being written should be out."""
        self._finishing = False
        self._work = trio.Event()
        self._room = trio.Event()

    @property
    def crowded(self) -> bool:
        """True while more than half of the bound is pending."""
        return self.pending > CROWDED

    def put(self, message: bytes) -> None:
        """Queue one encoded control message. Aborts the channel when too much is pending; after that, drops it."""
        self._queue(self._control, message)

    def put_event(self, message: bytes) -> None:
        """Queue one encoded event, as `put` does."""
        self._queue(self._events, message)

    def put_large(self, message: bytes) -> None:
        """Queue a message of any size that may wait for others, as `put` does. Raises FrameError over MAX_MESSAGE."""
        if len(message) > MAX_MESSAGE:
            raise FrameError(f"a message of {len(message)} bytes is over the limit of {MAX_MESSAGE}")
        if self._admit(len(message)):
            self._large.append((Cutter(message), self._events.taken + len(self._events.messages)))

    def beat(self) -> None:
        """Send a heartbeat before anything else that is pending."""
        if trio.current_time() > self._write_limit:
            self._give_up()
        self._beat_due = True
        self._work.set()

    async def room(self) -> None:
        """Wait while it is crowded. For those that may wait, so that they do not abort the link."""
        while self.crowded and not self.stuck:
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
            while self.pending or self._beat_due:
                messages, size = self._take()
                if messages:
                    await self._write(messages, size)
                if self._may_start_large() and not self.pieces:
                    whole = self._large.popleft()[0].rest()
                    await self._write([whole], len(whole))
            if self._finishing:
                return

    def close(self) -> None:
        """Drop what is pending and release those who wait for room: the link ended."""
        self.stuck = True
        self._control, self._events = _Lane(), _Lane()
        self._large.clear()
        self.pending = 0
        self._room.set()

    def _queue(self, lane: _Lane, message: bytes) -> None:
        size = len(message)
        if size > PIECE:
            self.put_large(message)
        elif self._admit(size):
            lane.messages.append(message)
            lane.size += size

    def _admit(self, size: int) -> bool:
        if self.stuck:
            return False
        if not self.pending:
            self._work.set()  # else the task is at work, and looks for more before it waits again
        elif self.pending >= MAX_PENDING:
            self._give_up()
            return False
        self.pending += size
        return True

    def _take(self) -> tuple[list[bytes], int]:
        """The messages of the next frame, and how many of the pending bytes they are."""
        messages: list[bytes] = []
        if self._beat_due:
            self._beat_due = False
            messages.append(self._heartbeat())
        size = self._control.take(FRAME_TARGET - PIECE, messages)
        size += self._events.take(FRAME_TARGET - PIECE - size if self._large else FRAME_TARGET - size, messages)
        if self.pieces and self._may_start_large():
            size += self._take_piece(messages)
        return messages, size

    def _may_start_large(self) -> bool:
        return bool(self._large) and self._large[0][1] <= self._events.taken

    def _take_piece(self, into: list[bytes]) -> int:
        cutter = self._large[0][0]
        before = cutter.left
        into.append(cutter.next())
        if not cutter.left:
            self._large.popleft()
        return before - cutter.left

    async def _write(self, messages: list[bytes], size: int) -> None:
        data = frame(join(messages))
        self._write_limit = trio.current_time() + STALL_LIMIT + len(data) / SLOWEST
        await self._channel.send_all(data)
        self._write_limit = math.inf
        if self.stuck:
            raise trio.BrokenResourceError("the other side does not read")
        self.pending -= size
        self._room.set()
        self._room = trio.Event()

    def _give_up(self) -> None:
        self.close()
        self._channel.abort()
