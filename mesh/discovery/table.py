"""What the mesh asks of a distributed hash table, and what that asks of the mesh.

The table itself is behind the transport that it speaks over; `dht` decides when to ask it what.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from mesh.identity import PeerId
    from mesh.messages.record import SealedRecord
    from mesh.registry import PeerView


@dataclass(frozen=True, kw_only=True)
class Gate:
    """Whom the table may have to do with. Nothing here blocks."""

    own: PeerId
    mesh: str
    serves: bool
    """We answer others; False for who only asks."""
    admits: Callable[[PeerId, str | None], bool]
    """May this peer be asked, and ask us? With an address: from there too."""
    usable: Callable[[str], bool]
    """May this address be dialled?"""
    known: Callable[[PeerId], Sequence[str]]
    """The addresses that a peer's own record names; empty when we have none."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """What the table leads to. Nothing here blocks."""

    learn: Callable[[SealedRecord], PeerView | None]
    """Take in a record; None when it is no news."""
    want: Callable[[PeerId, str, list[str], float], None]
    """Have a link with a peer, found by a way, at these addresses, until a time on trio's clock."""


class Table(Protocol):
    """A distributed hash table. Whatever asks others takes a bounded time, and answers with nothing when it fails."""

    @property
    def peers(self) -> list[PeerId]:
        """Who is in the table."""
        ...

    def addresses(self, peer_id: PeerId) -> list[str]:
        """Where a peer may be reached, the surest first."""
        ...

    async def run(self) -> None:
        """Work until cancelled."""
        ...

    def meet(self, peer_id: PeerId, addresses: Sequence[str]) -> None:
        """There is news of a peer: where it is, or that it lives."""
        ...

    def lost(self, peer_id: PeerId) -> None:
        """A peer just went away."""
        ...

    async def greet(self, peer_id: PeerId) -> bool:
        """Take a peer into the table. True when it answered."""
        ...

    async def refresh(self) -> None:
        """Look for more peers."""
        ...

    async def publish(self, sealed: SealedRecord) -> None:
        """Have our own record kept by others."""
        ...

    async def provide(self, model: str) -> None:
        """Have it known that we serve a model."""
        ...

    async def providers(self, model: str) -> list[PeerId]:
        """Who says to serve a model."""
        ...

    async def record(self, peer_id: PeerId) -> SealedRecord | None:
        """The newest record of a peer that can be found, checked."""
        ...


TableFactory = Callable[[Gate], Table]
