"""The worker's end of the socket to its node: two side threads, so that the main thread does nothing but compute.

1. A frame is an array of messages, both ways. `send` writes by itself while nothing is pending and the socket takes it: no other
   thread has to wake. What is pending when the writer wakes goes out together. Order is kept: `_behind` counts what `send` was
   given and nobody has written yet, and only the writer writes while there is something else.
2. The end of the stream, or one that broke, ends the process at once, whatever the main thread is doing: a worker never outlives
   its node.
3. Both directions are bounded by waiting: a node that sends too much is not read, one that does not read stops the engine.
   The end of the stream is noticed even then.
4. Every `ALIVE_EVERY` seconds the writer tells how the engine is, whether or not the engine still computes.
"""

from __future__ import annotations

import logging
import os
import queue
import select
import socket
import sys
import threading
import time
from enum import Enum
from typing import TYPE_CHECKING

import msgspec

from mesh.framing import MAX_FRAME, FrameError, FrameReader, frame
from mesh.messages.worker import FromWorker, ToWorker

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.messages.worker import Alive
    from node.worker.intake import Prepared

_logger = logging.getLogger(__name__)

ALIVE_EVERY = 1.0
MOST_PENDING = 4096
"""Messages that wait in either direction."""
_CHUNK = 256 * 1024
_HANG_UP_CHECK = 0.1
"""Seconds between looks at the socket while the engine does not take what was read."""


class _Signal(Enum):
    """To the writer, between messages."""

    GO_ON = 1
    END = 2


def end_process(code: int = 0) -> None:
    """Leave without clean-up: torch may be in the middle of anything, and Python may crash on threads that still run."""
    sys.stderr.flush()
    os._exit(code)


class NodeConnection:
    """Messages from and to the node. `connected` is a stream socket, owned from here on."""

    def __init__(self, connected: socket.socket, *, on_end: Callable[[], None] = end_process) -> None:
        self.alive: Callable[[], Alive] | None = None
        """What is told periodically; called from the writer's thread."""
        self._socket = connected
        self._on_end = on_end
        self._told = time.monotonic()
        self._incoming: queue.Queue[ToWorker | Prepared] = queue.Queue(MOST_PENDING)
        self._outgoing: queue.Queue[FromWorker | _Signal] = queue.Queue(MOST_PENDING)
        self._behind = 0
        self._counting = threading.Lock()
        self._rest = b""
        """Of a frame that the socket took in part; whoever holds `_writing` writes it first."""
        self._writing = threading.Lock()
        self._encoder = msgspec.msgpack.Encoder()
        self._writer = threading.Thread(target=self._guarded, args=(self._write,), name="to-node", daemon=True)
        self._reader = threading.Thread(target=self._guarded, args=(self._read,), name="from-node", daemon=True)

    def start(self) -> None:
        """Begin to read and write."""
        self._reader.start()
        self._writer.start()

    def send(self, message: FromWorker) -> None:
        """Write a message, or queue it. Blocks while too many are pending. For the main thread alone."""
        with self._counting:
            first = self._behind == 0
            self._behind += 1
        if first and self._writer.is_alive() and self._writing.acquire(blocking=False):
            try:
                self._write_at_once(message)
            finally:
                self._writing.release()
        else:
            self._outgoing.put(message)

    def post(self, prepared: Prepared) -> None:
        """Let `receive` return this as if it had come from the node. Blocks while too much is pending."""
        self._incoming.put(prepared)

    def receive(self, *, wait: bool) -> list[ToWorker | Prepared]:
        """What has arrived, in order. With `wait`, blocks without spinning until there is something."""
        messages: list[ToWorker | Prepared] = [self._incoming.get()] if wait else []
        for _ in range(self._incoming.qsize()):
            messages.append(self._incoming.get_nowait())  # noqa: PERF401 - each call takes one out
        return messages

    def flush(self, seconds: float) -> None:
        """Write what is pending, then stop writing. Waits at most `seconds`."""
        self._outgoing.put(_Signal.END)
        self._writer.join(seconds)

    def _write_at_once(self, message: FromWorker) -> None:
        data = self._frames([message])
        try:
            sent = self._socket.send(data, socket.MSG_DONTWAIT)
        except OSError:
            sent = 0  # full, or broken: the writer finds out
        if sent < len(data):
            self._rest = data[sent:]
            self._outgoing.put(_Signal.GO_ON)
        else:
            self._written(1)

    def _written(self, count: int) -> None:
        with self._counting:
            self._behind -= count

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (OSError, FrameError, msgspec.MsgspecError) as error:
            _logger.error("the connection to the node broke: %s", error)  # noqa: TRY400 - the reason is enough
            self._on_end()

    def _read(self) -> None:
        decoder = msgspec.msgpack.Decoder(list[ToWorker])
        reader = FrameReader()
        while data := self._socket.recv(_CHUNK):
            for body in reader.feed(data):
                for message in decoder.decode(body):
                    self._deliver(message)
        self._on_end()

    def _deliver(self, message: ToWorker) -> None:
        while True:
            try:
                self._incoming.put(message, timeout=_HANG_UP_CHECK)
            except queue.Full:
                if self._hung_up():
                    raise ConnectionResetError("the node is gone") from None
            else:
                return

    def _hung_up(self) -> bool:
        poll = select.poll()
        poll.register(self._socket, 0)  # hang-up and error are reported without asking
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))

    def _write(self) -> None:
        more = True
        while more:
            signal, pending = self._pending()
            more = signal is not _Signal.END
            news = self._news() if more else []
            with self._writing:
                cut = bool(self._rest)
                self._socket.sendall(self._rest)
                self._rest = b""
                if pending or news:
                    self._socket.sendall(self._frames([*pending, *news]))
            self._written(len(pending) + cut)

    def _pending(self) -> tuple[_Signal | None, list[FromWorker]]:
        """What is to be sent next. Waits for something, or until it is time to say something."""
        pending: list[FromWorker] = []
        wait = max(0.0, self._told + ALIVE_EVERY - time.monotonic())
        try:
            message = self._outgoing.get(timeout=wait)
            while not isinstance(message, _Signal):
                pending.append(message)
                if len(pending) == MOST_PENDING:
                    return None, pending
                message = self._outgoing.get_nowait()
        except queue.Empty:
            return None, pending
        return message, pending

    def _news(self) -> list[FromWorker]:
        now = time.monotonic()
        if now - self._told < ALIVE_EVERY:
            return []
        self._told = now
        return [self.alive()] if self.alive is not None else []

    def _frames(self, messages: list[FromWorker]) -> bytes:
        body = self._encoder.encode(messages)
        if len(body) <= MAX_FRAME or len(messages) == 1:
            return frame(body)
        half = len(messages) // 2
        return self._frames(messages[:half]) + self._frames(messages[half:])
