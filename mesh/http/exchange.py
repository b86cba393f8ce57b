"""One answer on its way out.

1. Its head goes out with the first bytes of its body, in one write.
2. A body of unknown length is chunked; for HTTP/1.0 it ends with the connection. A missing last chunk tells that it was cut.
3. What a stream may have waiting for its client is bounded; a whole answer is one piece and waits as it is.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mesh.http.errors import INTERNAL, error_response
from mesh.http.message import Response, StreamWriter
from mesh.http.origin import cors_headers
from mesh.http.wire import LAST_CHUNK, encode_chunk, encode_head

if TYPE_CHECKING:
    from mesh.http.message import StreamingResponse
    from mesh.http.output import Output
    from mesh.http.parser import Incoming

LOGGER = logging.getLogger(__name__)


class Exchange:
    """The answer to `incoming`; None stands for something that could not be read as a request."""

    def __init__(self, output: Output, incoming: Incoming | None, *, keep_alive: bool, buffered_bytes: int) -> None:
        self.keep_alive = keep_alive
        self.started = False
        self.writer = StreamWriter(self._write, flushed=output.flushed)
        self._content_type = ""
        self._output = output
        self._buffered_bytes = buffered_bytes
        self._request = incoming.request if incoming else None
        self._speaks_chunks = incoming is None or incoming.chunked
        self._closed = False

    def send(self, response: Response) -> None:
        """Send a whole answer. One whose headers cannot be sent becomes a 500."""
        try:
            head = self._head(response.status, response.content_type, response.headers, len(response.body))
        except ValueError:
            LOGGER.exception("an answer could not be sent")
            response = error_response(INTERNAL)
            head = self._head(response.status, response.content_type, {}, len(response.body))
        has_body = response.status not in (204, 304) and not self._is_head_request
        self.started = self._closed = True
        self._output.write(head + response.body if has_body else head)

    async def stream(self, response: StreamingResponse) -> None:
        """Send what `produce` writes. Blocks until it returns; raises what it raises, `started` says whether that is too late."""
        self.keep_alive = self.keep_alive and self._speaks_chunks
        self._content_type = response.content_type
        self.writer.headers = dict(response.headers)
        if self._is_head_request:
            self._output.write(self._first_head())
            return
        try:
            await response.produce(self.writer)
        finally:
            self._closed = True  # what a callback writes late must not get into the next answer
        end = LAST_CHUNK if self._speaks_chunks else b""
        self._output.write(end if self.started else self._first_head() + end)

    @property
    def _is_head_request(self) -> bool:
        return self._request is not None and self._request.method == "HEAD"

    def _write(self, data: bytes) -> None:
        if self._closed:
            return
        if self._speaks_chunks:
            data = encode_chunk(data)
        self._output.write(data if self.started else self._first_head() + data)
        if self._output.pending > self._buffered_bytes:
            self._output.lose("reads too slowly for its stream")

    def _first_head(self) -> bytes:
        self.started = True
        try:
            return self._head(200, self._content_type, self.writer.headers, None)
        except ValueError:
            LOGGER.exception("a stream could not be started")
            self._output.lose("cannot be sent the head of its stream")
            return b""

    def _head(self, status: int, content_type: str, headers: dict[str, str], length: int | None) -> bytes:
        framing: list[tuple[str, str]] = []
        if length is None and self._speaks_chunks:
            framing.append(("transfer-encoding", "chunked"))
        elif length is not None and status != 204:
            framing.append(("content-length", str(length)))
        if not self.keep_alive:
            framing.append(("connection", "close"))
        elif not self._speaks_chunks:
            framing.append(("connection", "keep-alive"))
        extra = cors_headers(self._request) if self._request else {}
        return encode_head(status, {"content-type": content_type, **extra, **headers}.items(), framing)
