"""Link messages to bytes and back.

1. Each message is encoded by itself, once; a frame body is an array header and the messages joined. It is decoded by itself too,
   because its size counts (`credit.py`).
2. One message that cannot be understood never hides the others of its frame: an unknown kind and a request or event of the wrong
   shape are reported, anything else of the wrong shape is a `FrameError`.
3. A frame holds at most `MAX_MESSAGES`: decoding must not take many times the memory of the frame.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, get_args

import msgspec

from mesh.framing import MAX_FRAME, FrameError
from mesh.messages.link import Attach, Emit, LinkMessage, Open

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_MESSAGES = 65_536
MAX_MESSAGE = MAX_FRAME - 5
"""Bytes of one encoded message: a frame less its array header."""
MAX_KIND = 64
"""Characters of an unknown kind that are worth repeating."""

_encoder = msgspec.msgpack.Encoder()
_one = msgspec.msgpack.Decoder(LinkMessage)
_raw = msgspec.msgpack.Decoder(list[msgspec.Raw])
# RecursionError: msgspec refuses deep nesting with it.
_BROKEN = (ValueError, RecursionError)


class _Envelope(msgspec.Struct):
    type: str
    stream: int | None = None


_envelope = msgspec.msgpack.Decoder(_Envelope)


def _kind(of: type) -> str:
    return str(of.__struct_config__.tag)  # type: ignore[attr-defined] # msgspec sets it on every struct


KINDS = frozenset(_kind(of) for of in get_args(LinkMessage))


class UnknownKind(msgspec.Struct, frozen=True):
    """A message of a kind that we do not know. `kind` is cut to MAX_KIND."""

    kind: str


class Malformed(msgspec.Struct, frozen=True):
    """An `Open`, `Attach` or `Emit` of a known number whose content has the wrong shape; `why` names the field."""

    opened: bool
    stream: int
    why: str


Received = LinkMessage | UnknownKind | Malformed


def encode(message: LinkMessage) -> bytes:
    """The bytes of one message."""
    return _encoder.encode(message)


def join(parts: Sequence[bytes]) -> bytes:
    """A frame body that holds the encoded messages in order."""
    return b"".join((struct.pack(">BI", 0xDD, len(parts)), *parts))


def parts(body: bytes) -> list[msgspec.Raw]:
    """The messages of a frame body, in order, not decoded yet; `len` is the size of each. Raises FrameError."""
    if _length(body) > MAX_MESSAGES:
        raise FrameError(f"a frame of more than {MAX_MESSAGES} messages")
    try:
        return _raw.decode(body)
    except _BROKEN as error:
        raise FrameError(f"not an array of messages: {error}") from error


def decode_one(part: msgspec.Raw | bytes) -> Received:
    """One message. Raises FrameError."""
    try:
        message: LinkMessage = _one.decode(part)
    except _BROKEN as error:
        return _diagnose(part, error)
    return message


def decode(body: bytes) -> list[Received]:
    """The messages of a frame body, in order. Raises FrameError."""
    return [decode_one(part) for part in parts(body)]


def _diagnose(part: msgspec.Raw | bytes, error: Exception) -> UnknownKind | Malformed:
    try:
        envelope = _envelope.decode(part)
    except _BROKEN as broken:
        raise FrameError(f"not a message: {broken}") from broken
    if envelope.type not in KINDS:
        return UnknownKind(envelope.type[:MAX_KIND])
    if envelope.stream is not None and envelope.type in (_kind(Open), _kind(Attach), _kind(Emit)):
        return Malformed(envelope.type != _kind(Emit), envelope.stream, str(error)[:200])
    raise FrameError(f"a message of kind {envelope.type} is malformed: {error}")


def _length(body: bytes) -> int:
    """What the array header says; 0 when there is none, which decoding then refuses."""
    match body[:1]:
        case b"\xdc":
            return int.from_bytes(body[1:3], "big")
        case b"\xdd":
            return int.from_bytes(body[1:5], "big")
        case _:
            return 0
