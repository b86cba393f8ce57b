"""The two ends of a circuit: who dials asks a relay to be joined, who is dialled opens the other half when the relay says so.

1. A relay joins linked peers only, so a peer that would dial over one is linked with it first, and stays linked for a while.
2. At most `MAX_HALVES` halves are open or being opened for others at a time; more are not answered, and their relay says so.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

from mesh.addresses import peer_of
from mesh.errors import MeshError, Unavailable
from mesh.messages.relay import Fetch, Join, Joined
from mesh.relay import PROTOCOL
from mesh.relay.wire import read, write

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.identity import PeerId
    from mesh.messages.relay import Incoming, StreamMessage
    from mesh.transport.base import Channel
    from mesh.transport.streams import Streams

MAX_HALVES = 256
LINK_LIMIT = 3.0
"""Seconds that a link with the relay may take."""
JOIN_LIMIT = 4.5
"""Seconds that the relay may take: a little more than it gives the other side."""

logger = logging.getLogger(__name__)


class Hands(Protocol):
    """What joining needs of its peer."""

    async def linked(self, peer_id: PeerId, addresses: Sequence[str]) -> bool:
        """Get a link with a relay, for a while. False when there is none in LINK_LIMIT."""
        ...


class Joining:
    """See the head of this file for the rules."""

    def __init__(self, own: PeerId, streams: Streams, hands: Hands) -> None:
        self._own = own
        self._streams = streams
        self._hands = hands
        self._halves = 0

    async def join(self, address: str, target: PeerId) -> Channel:
        """A stream joined with one of `target`, from the relay at `address`. Raises MeshError."""
        relay = peer_of(address)
        if relay == self._own:
            raise Unavailable("this peer is the relay itself", code="relay_failed")
        if not await self._hands.linked(relay, [address]):
            raise Unavailable("the relay could not be linked", code="relay_failed")
        return await self._ask([address], Join(target))

    async def fetch(self, addresses: Sequence[str], incoming: Incoming) -> None:
        """Open our half of a circuit at the relay and serve it until it ends. What goes wrong is logged and nothing else."""
        if self._halves >= MAX_HALVES:
            logger.info("a circuit for %.64s is not opened: %d are open already", incoming.peer_id, MAX_HALVES)
            return
        self._halves += 1
        try:
            await self._streams.welcome(await self._ask(addresses, Fetch(incoming.circuit)))
        except MeshError as error:
            logger.info("no circuit for %.64s: %s", incoming.peer_id, error.message)
        finally:
            self._halves -= 1

    async def _ask(self, addresses: Sequence[str], question: StreamMessage) -> Channel:
        channel = await self._streams.open(addresses, PROTOCOL)
        try:
            await write(channel, question)
            _check(await read(channel, limit=JOIN_LIMIT))
        except BaseException:
            channel.abort()
            raise
        return channel


def _check(answer: StreamMessage) -> None:
    if not isinstance(answer, Joined):
        raise Unavailable("the relay did not answer the question", code="relay_failed")
    if answer.code:
        text = " ".join(answer.message.split())[:300]
        raise Unavailable(f"the relay refused: {text}", code=answer.code[:64])
