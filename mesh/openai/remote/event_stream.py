"""Server-sent events out of bytes. No I/O. Only their data matters here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.errors import BackendFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_EVENT = 1024 * 1024


class EventStream:
    """One stream on its way in; at most MAX_EVENT bytes of it are kept."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._data: list[bytes] = []

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The data of every event that `data` completes. Raises BackendFailed when one grows too large."""
        self._buffer += data
        for line in self._lines():
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                event, self._data = b"\n".join(self._data), []
                yield event
        if len(self._buffer) + sum(map(len, self._data)) > MAX_EVENT:
            raise BackendFailed(f"the service sent an event of more than {MAX_EVENT} bytes", code="bad_answer")

    def rest(self) -> bytes:
        """The data of an event whose end never came; empty when there is none."""
        event, self._data = b"\n".join(self._data), []
        return event

    def _lines(self) -> Iterator[bytes]:
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            yield bytes(line.removesuffix(b"\r"))
