"""What some transports can do besides links: byte streams of other protocols, and links over joined ones.

1. The peer id of every stream is proven, as a link's is.
2. What goes over a joined stream is encrypted end to end, whoever joined it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from mesh.errors import Unavailable
from mesh.identity import PeerId
from mesh.transport.base import Channel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.transport.base import Handler

Join = Callable[[str, PeerId], Awaitable[Channel]]
"""Asks the relay at an address for a stream that is joined with one of a peer. Raises MeshError. May take seconds."""


class Streams(ABC):
    """The streams of a transport, which must be running for all but `answer` and `join_by`."""

    @abstractmethod
    def answer(self, protocol: str, handler: Handler) -> None:
        """Give inbound streams of a protocol to a handler, as `Transport.run` says of links. Before the transport runs."""

    @abstractmethod
    def join_by(self, join: Join) -> None:
        """From now on `dial` also takes addresses that lead over a relay, and asks `join` for them."""

    @abstractmethod
    async def open(self, addresses: Sequence[str], protocol: str) -> Channel:
        """As `Transport.dial`, but for a stream of another protocol, and never over a relay."""

    @abstractmethod
    async def welcome(self, joined: Channel) -> None:
        """Serve a joined stream at whose other end somebody dials us, until it ends. It is closed then."""

    @abstractmethod
    async def probe(self, address: str) -> None:
        """Find out whether the peer that an address names answers there, and say no more to it. Raises Unavailable."""


class NoStreams(Streams):
    """Of a transport that has none: nobody is reached."""

    def answer(self, protocol: str, handler: Handler) -> None:
        """Nobody comes."""

    def join_by(self, join: Join) -> None:
        """Nothing is dialled over relays."""

    async def open(self, addresses: Sequence[str], protocol: str) -> Channel:
        """Raise Unavailable."""
        raise _none(f"{protocol} to {addresses[:1]}")

    async def welcome(self, joined: Channel) -> None:
        """Raise Unavailable."""
        raise _none(joined.remote_address)

    async def probe(self, address: str) -> None:
        """Raise Unavailable."""
        raise _none(address)


def _none(what: str) -> Unavailable:
    return Unavailable(f"this peer's transport carries links alone, not {what}", code="unreachable")
