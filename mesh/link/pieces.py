"""A large message in pieces, so that heartbeats and tokens of others go between them.

1. One message at a time is under way in each direction, of at most `MAX_MESSAGE` bytes: that bounds what is kept.
2. Every piece but the last holds at least `LEAST` bytes: the work for a message is bounded too.
3. What the pieces make up is one whole message, and not a piece again.
"""

from __future__ import annotations

from mesh.framing import FrameError
from mesh.link.codec import MAX_MESSAGE, encode
from mesh.messages.link import Piece

PIECE = 32 * 1024
"""Bytes of a piece. A message up to this size is sent whole."""
LEAST = 1024


class Cutter:
    """One message on its way out, in pieces if it is large."""

    def __init__(self, message: bytes) -> None:
        self._message = memoryview(message)
        self.left = len(message)

    def rest(self) -> bytes:
        """All that is left, as it is."""
        start, self.left = len(self._message) - self.left, 0
        return bytes(self._message[start:])

    def next(self) -> bytes:
        """What to send next: the whole message if it is small, else a piece of it, encoded. `left` falls by what it holds."""
        if len(self._message) <= PIECE:
            return self.rest()
        start = len(self._message) - self.left
        data = bytes(self._message[start : start + PIECE])
        self.left -= len(data)
        return encode(Piece(data, last=not self.left))


class Assembly:
    """One large message on its way in."""

    def __init__(self) -> None:
        self._message = bytearray()

    def add(self, piece: Piece) -> bytes | None:
        """Take a piece; the whole message with the last one. Raises FrameError."""
        if len(piece.data) < LEAST and not piece.last:
            raise FrameError(f"a piece of {len(piece.data)} bytes that is not the last one; at least {LEAST} are due")
        if len(self._message) + len(piece.data) > MAX_MESSAGE:
            raise FrameError(f"pieces of a message over the limit of {MAX_MESSAGE} bytes")
        self._message += piece.data
        if not piece.last:
            return None
        message = bytes(self._message)
        self._message.clear()
        return message
