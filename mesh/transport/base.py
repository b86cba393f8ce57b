"""The interface of a transport: authenticated byte streams between peers.

1. A channel's `peer_id` is proven by the transport before anybody sees the channel.
2. An address is a multiaddr that ends in `/p2p/<peer id>`: nobody dials without knowing whom.
3. Losing the other side raises `trio.BrokenResourceError` from a read or a write, or ends the reads with `b""`; a reset may
   look like a clean end, so whoever speaks over a channel marks its own ends.
4. `abort` closes the socket itself at once; it works for a peer that hangs. `aclose` may wait a little for a clean end.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Literal

import trio

if TYPE_CHECKING:
    from mesh.identity import PeerId


Carrier = Literal["libp2p", "direct", "relay", "memory"]


class Channel(trio.abc.Stream):
    """One byte stream to one proven peer. One task reads and one task writes."""

    carrier: Carrier = "libp2p"
    """What bytes travel by, for the whole life of the channel."""
    peer_id: PeerId
    remote_address: str
    """Where the other side is, as far as this side sees: a multiaddr or `host:port`, for logs and for the open-mesh rule."""
    via: PeerId | None = None
    """The relay that passes its bytes on, encrypted end to end; None where there is none."""

    @abstractmethod
    def abort(self) -> None:
        """Close at once, at the socket. Never blocks, may be called twice; pending reads and writes then fail."""


Handler = Callable[[Channel], Awaitable[None]]
"""Runs for every inbound channel in a task of its own. The channel is closed when it returns or raises an Exception."""


class Transport(ABC):
    """A peer's way to others. `run` must be running before anything else is called."""

    @abstractmethod
    async def run(self, handler: Handler, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen until cancelled; `started()` once all listeners are bound. Raises Misconfigured when one cannot be."""

    @property
    @abstractmethod
    def addresses(self) -> list[str]:
        """The full addresses others can dial, loopback first, each ending in `/p2p/<our id>`."""

    @abstractmethod
    async def dial(self, addresses: Sequence[str]) -> Channel:
        """A channel to the peer that all `addresses` name; the first address that answers wins.

        Blocks until one answers, at most the transport's own connect limit (5 s). Raises Unavailable, naming each address
        and why it failed.
        """
