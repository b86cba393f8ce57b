"""Frames on every byte stream of ours: links, the worker socket.

1. A frame is a 4-byte big-endian length and that many bytes of MessagePack, at most `MAX_FRAME`.
2. The body is an array of messages: everything that was pending when the writer woke. A write costs far more than its bytes.
3. A frame that breaks a rule raises `FrameError`; the stream is then unusable and must be aborted.
"""

from __future__ import annotations

import struct

MAX_FRAME = 4 * 1024 * 1024
"""Bytes in the body of one frame."""

_LENGTH = struct.Struct(">I")


class FrameError(ValueError):
    """The other side broke the framing. Abort the stream: nothing after this point can be trusted."""


def frame(body: bytes) -> bytes:
    """The bytes of one frame. Raises FrameError when the body is over MAX_FRAME."""
    if len(body) > MAX_FRAME:
        raise FrameError(f"a frame of {len(body)} bytes is over the limit of {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


class FrameReader:
    """Cuts a byte stream into frame bodies. Holds at most one incomplete frame and what was last fed."""

    def __init__(self, limit: int = MAX_FRAME) -> None:
        self._buffer = bytearray()
        self._limit = limit

    def feed(self, data: bytes) -> list[bytes]:
        """The bodies that `data` completes, in order. Raises FrameError."""
        self._buffer += data
        bodies: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(self._buffer, start)
            if size > self._limit:
                raise FrameError(f"a frame of {size} bytes is over the limit of {self._limit}")
            end = start + _LENGTH.size + size
            if len(self._buffer) < end:
                break
            bodies.append(bytes(self._buffer[start + _LENGTH.size : end]))
            start = end
        if start:
            del self._buffer[:start]
        return bodies
