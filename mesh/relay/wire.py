"""What is said on a stream before it is joined: one frame each way, read to its last byte and not one further."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import Unavailable
from mesh.framing import frame
from mesh.messages.relay import StreamMessage

if TYPE_CHECKING:
    from mesh.transport.base import Channel

MAX_SIZE = 1024
"""Bytes of a message: the longest holds a refusal in words."""
LIMIT = 5.0
"""Seconds that the other side may take for one message."""

_LENGTH = struct.Struct(">I")
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(StreamMessage)
_LOST = (trio.BrokenResourceError, trio.ClosedResourceError)


async def write(channel: Channel, message: StreamMessage) -> None:
    """Say it. Raises Unavailable when the other side is gone."""
    try:
        await channel.send_all(frame(_encoder.encode(message)))
    except _LOST as error:
        raise Unavailable("the relay's stream ended", code="relay_failed") from error


async def read(channel: Channel, *, limit: float = LIMIT) -> StreamMessage:
    """The next message. Raises Unavailable when none comes within `limit` seconds, or it is none."""
    try:
        with trio.fail_after(limit):
            (size,) = _LENGTH.unpack(await _exactly(channel, _LENGTH.size))
            if size > MAX_SIZE:
                raise _broken(f"a message of {size} bytes")
            message: StreamMessage = _decoder.decode(await _exactly(channel, size))
            return message
    except trio.TooSlowError as error:
        raise Unavailable(f"the relay's stream was silent for {limit:g} s", code="relay_failed") from error
    except _LOST as error:
        raise Unavailable("the relay's stream ended", code="relay_failed") from error
    except (ValueError, RecursionError) as error:
        raise _broken("something that is no message") from error


async def _exactly(channel: Channel, size: int) -> bytes:
    received = b""
    while len(received) < size:
        piece = await channel.receive_some(size - len(received))
        if not piece:
            raise Unavailable("the relay's stream ended", code="relay_failed")
        received += piece
    return received


def _broken(what: str) -> Unavailable:
    return Unavailable(f"the relay's stream broke the protocol: {what}", code="relay_failed")
