"""What a client shows to get its stream back.

1. A token is opaque to clients: base64url of a version, the beginning of a hash of the node's peer id, and the secret under which
   nodes keep the stream. Only the secret opens anything; the node is where to look first.
2. Whatever is not a token of ours names no stream: it is `stream_not_found`, as a stream that is gone.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass, field

from mesh.errors import NotFound

_VERSION = b"\x01"
_NODE = 8
_SECRET = 16
_LENGTH = 34
MAX_TOKENS = 2**31 - 1


@dataclass(frozen=True)
class ResumeToken:
    """Which stream. `str` of it is what clients get."""

    node: bytes
    secret: bytes = field(repr=False)

    def __str__(self) -> str:
        return base64.urlsafe_b64encode(_VERSION + self.node + self.secret).rstrip(b"=").decode()

    @classmethod
    def of(cls, peer_id: str, secret: bytes) -> ResumeToken:
        """The token of a stream that this node keeps."""
        return cls(_hash(peer_id), secret)

    @classmethod
    def parse(cls, text: str) -> ResumeToken:
        """Raises NotFound(code="stream_not_found")."""
        if len(text) != _LENGTH or not text.isascii():
            raise not_found()
        try:
            raw = base64.b64decode(text + "==", altchars=b"-_", validate=True)
        except binascii.Error:
            raise not_found() from None
        if raw[:1] != _VERSION or len(raw) != 1 + _NODE + _SECRET:
            raise not_found()
        return cls(raw[1 : 1 + _NODE], raw[1 + _NODE :])

    def names(self, peer_id: str) -> bool:
        """True for the node that the token was made for."""
        return _hash(peer_id) == self.node


def parse_event_id(text: str) -> tuple[ResumeToken, int]:
    """`TOKEN:TOKENS` as the events of a stream carry it. Raises NotFound."""
    token, _, tokens = text.strip().partition(":")
    if not (tokens.isascii() and tokens.isdigit()) or len(tokens) > 10 or int(tokens) > MAX_TOKENS:
        raise not_found()
    return ResumeToken.parse(token), int(tokens)


def not_found() -> NotFound:
    """What everybody is told for whom there is nothing."""
    return NotFound("no such stream: its output is not kept any more; send the request again", code="stream_not_found")


def _hash(peer_id: str) -> bytes:
    return hashlib.sha256(peer_id.encode()).digest()[:_NODE]
