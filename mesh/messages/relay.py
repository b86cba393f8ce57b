"""What peers and relays say to each other: on their link, and on the stream that becomes one half of a circuit."""

from __future__ import annotations

import msgspec


class Reserve(msgspec.Struct, frozen=True, tag="reserve"):
    """The sender cannot be dialled and asks to be reached over the receiver. Answered by one `Reserved`."""


class Reserved(msgspec.Struct, frozen=True, tag="reserved"):
    """The receiver is reached over the sender for as long as they are linked; not, and why not, with a `code`."""

    code: str = ""
    message: str = ""


class Release(msgspec.Struct, frozen=True, tag="release"):
    """The sender needs its reservation no more."""


class Incoming(msgspec.Struct, frozen=True, tag="incoming"):
    """From a relay: `peer_id` wants to reach the receiver, which opens its half of the `circuit` or does nothing."""

    circuit: bytes
    peer_id: str

    def __repr__(self) -> str:
        return f"Incoming({self.peer_id!r})"


class Join(msgspec.Struct, frozen=True, tag="join"):
    """First and only frame of who dials: join this stream with one of that peer."""

    peer_id: str


class Fetch(msgspec.Struct, frozen=True, tag="fetch"):
    """First and only frame of who is dialled: this stream is the other half of the circuit that an `Incoming` named."""

    circuit: bytes

    def __repr__(self) -> str:
        return "Fetch()"


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """The relay's answer on both streams: from the next byte on they are one. With a `code`: they will not be."""

    code: str = ""
    message: str = ""


RelayControl = Reserve | Reserved | Release | Incoming
"""On a link."""
StreamMessage = Join | Fetch | Joined
"""On a stream."""
