"""From bytes to requests. No I/O.

1. One connection's bytes in, a queue of requests out; the first fault ends the queue with an error and the parser with it.
2. No field grows without a bound: the head, the body, and what surrounds the body on the wire are all counted.
3. A request that could be read in two ways (two lengths, two hosts, an odd transfer coding) is a 400.
4. After a request for a WebSocket, bytes are kept aside until somebody decides: `resume` for HTTP, `take_rest` for the WebSocket.
   Any other upgrade is ignored, as HTTP allows (some clients ask for HTTP/2 with every first request, body and all).
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import parse_qsl, unquote

import httptools

from mesh.errors import BadRequest, MeshError
from mesh.http.message import Request

if TYPE_CHECKING:
    from mesh.http.limits import Limits

Phase = Literal["idle", "head", "body"]

_OVERHEAD_BYTES = 64 * 1024
"""On top of twice the body limit: what chunk sizes, extensions and trailers may take on the wire."""
_QUERY_FIELDS = 100


@dataclass(slots=True, frozen=True)
class Incoming:
    """A request and what its connection must know to answer it."""

    request: Request
    keep_alive: bool
    chunked: bool
    """Whether the client understands a chunked answer (HTTP/1.1)."""


class RequestParser:
    """See the head of this file."""

    def __init__(self, limits: Limits, client: str) -> None:
        self.requests: deque[Incoming | MeshError] = deque()
        self.phase: Phase = "idle"
        self.failed = False
        self.upgraded = False
        self.wants_continue = False
        """The client waits for `100 Continue` before it sends the body."""
        self.rest = bytearray()
        self._limits = limits
        self._client = client
        self._parser: Any = httptools.HttpRequestParser(self)
        self._clear()

    def feed(self, data: bytes) -> None:
        """Take what the client sent. Never raises: faults go into `requests`."""
        if self.failed:
            return
        if self.upgraded:
            self.rest += data
            return
        before, known = self.phase, len(self.requests)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._take_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            self.fail(BadRequest(f"this is not HTTP/1.1 as we understand it: {error}", code="bad_http"))
        if self.phase == before or (before == "idle" and len(self.requests) == known):
            self._count(len(data))

    def fail(self, error: MeshError) -> None:
        """End the queue with `error`; nothing after it is read as a request."""
        if not self.failed:
            self.failed = True
            self.requests.append(error)

    def resume(self) -> None:
        """Go on with HTTP after an upgrade that nobody wanted."""
        self.upgraded = False
        self._parser = httptools.HttpRequestParser(self)
        self.feed(self.take_rest())

    def take_rest(self) -> bytes:
        """What came after the request to upgrade."""
        rest, self.rest = bytes(self.rest), bytearray()
        return rest

    def _take_upgrade(self, rest: bytes) -> None:
        """The parser stopped after a head that asks for an upgrade."""
        if not self._ignored:
            self.upgraded = True
            self.rest += rest
            return
        self._parser = httptools.HttpRequestParser(self)
        self.feed(self._ignored + rest)

    def _clear(self) -> None:
        self._ignored = b""
        self._url = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._head_size = self._body_size = self._wire_size = 0

    def _count(self, size: int) -> None:
        """Bound what the callbacks do not see yet: an endless header line, chunk extension or trailer."""
        self._wire_size += size
        if self.phase == "head" and self._wire_size > self._limits.head_bytes:
            self._fail_head()
        elif self.phase == "body" and self._wire_size > 2 * self._limits.body_bytes + _OVERHEAD_BYTES:
            self._fail_body()

    # What follows is called by httptools while it reads.

    def on_message_begin(self) -> None:
        self._clear()
        self.phase = "head"

    def on_url(self, url: bytes) -> None:
        self._grow_head(len(url))
        if not self.failed:
            self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._grow_head(len(name) + len(value) + 4)
        if self.failed or self.phase == "body":  # a trailer: counted, never used
            return
        key, text = name.decode("latin-1").lower(), value.decode("latin-1")
        if key not in self._headers:
            self._headers[key] = text
        elif key == "host":
            self.fail(BadRequest("two Host headers", code="bad_http"))
        else:
            self._headers[key] += f", {text}"

    def on_headers_complete(self) -> None:
        self.phase = "body"
        self._wire_size = 0
        if not self.failed:
            self._check_head()

    def on_body(self, data: bytes) -> None:
        self._body_size += len(data)
        self.wants_continue = False
        if self._body_size > self._limits.body_bytes:
            self._fail_body()
        elif not self.failed:
            self._body.append(data)

    def on_message_complete(self) -> None:
        self.phase = "idle"
        self.wants_continue = False
        if self.failed:
            return
        if self._parser.should_upgrade() and not self._is_accepted_upgrade():
            self._ignored = self._head_without_upgrade()
        else:
            self._add_request()

    def _is_accepted_upgrade(self) -> bool:
        if self._parser.get_method() == b"CONNECT":
            return True  # there is no way on in HTTP; the router refuses it
        has_body = "transfer-encoding" in self._headers or self._headers.get("content-length", "0") != "0"
        return self._headers.get("upgrade", "").lower() == "websocket" and not has_body

    def _head_without_upgrade(self) -> bytes:
        lines = [f"{self._parser.get_method().decode()} {self._url.decode('latin-1')} HTTP/{self._parser.get_http_version()}"]
        lines += [f"{name}: {value}" for name, value in self._headers.items() if name != "upgrade"]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    def _grow_head(self, size: int) -> None:
        self._head_size += size
        if self._head_size > self._limits.head_bytes:
            self._fail_head()

    def _fail_head(self) -> None:
        limit = self._limits.head_bytes
        self.fail(
            BadRequest(f"the request line and headers are over the limit of {limit} bytes", status=431, code="head_too_large")
        )

    def _fail_body(self) -> None:
        limit = self._limits.body_bytes
        self.fail(BadRequest(f"the request body is over the limit of {limit} bytes", status=413, code="body_too_large"))

    def _check_head(self) -> None:
        version = self._parser.get_http_version()
        coding = self._headers.get("transfer-encoding")
        if version not in ("1.0", "1.1"):
            self.fail(BadRequest(f"HTTP {version} is not spoken here; use HTTP/1.1", status=505, code="bad_http"))
        elif version == "1.1" and "host" not in self._headers:
            self.fail(BadRequest("the Host header is missing", code="bad_http"))
        elif coding is not None and (coding.lower() != "chunked" or version == "1.0" or "content-length" in self._headers):
            self.fail(BadRequest("a body is either chunked (HTTP/1.1) or has one Content-Length", code="bad_http"))
        elif int(self._headers.get("content-length", "0")) > self._limits.body_bytes:
            self._fail_body()
        else:
            self.wants_continue = self._headers.get("expect", "").lower() == "100-continue"

    def _add_request(self) -> None:
        try:
            target, query = _split_url(self._url)
        except ValueError as error:
            self.fail(BadRequest(f"the request target cannot be read: {error}", code="bad_http"))
            return
        request = Request(
            method=self._parser.get_method().decode("ascii"),
            path=unquote(target),
            target=target,
            query=query,
            headers=self._headers,
            body=b"".join(self._body),
            client=self._client,
        )
        self._body = []
        self.requests.append(
            Incoming(
                request=request,
                keep_alive=bool(self._parser.should_keep_alive()) and request.method != "CONNECT",
                chunked=self._parser.get_http_version() == "1.1",
            )
        )


def _split_url(url: bytes) -> tuple[str, dict[str, str]]:
    """The path as sent and the query's fields; the last of equal names wins."""
    text = url.decode("ascii")
    if not text.startswith("/") and "://" in text:  # the absolute form, as sent to proxies
        text = "/" + text.partition("://")[2].partition("/")[2]
    target, _, query = text.partition("?")
    if not query:
        return target, {}
    return target, dict(parse_qsl(query, keep_blank_values=True, max_num_fields=_QUERY_FIELDS))
