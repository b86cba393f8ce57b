"""Who may open a direct link: one-time tickets, each bound to the peer that asked for it.

1. A ticket is good once, for `TICKET_LIFE` seconds, and for one peer id.
2. A peer has at most one: asking again replaces it. There are at most `MAX_TICKETS`; when all are taken, nobody else gets one.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.identity import PeerId

TICKET_SIZE = 32
TICKET_LIFE = 10.0
MAX_TICKETS = 1024


class Tickets:
    """Those that are out. `clock` is trio's unless a test has its own."""

    def __init__(self, *, clock: Callable[[], float] = trio.current_time) -> None:
        self._clock = clock
        self._out: dict[bytes, tuple[PeerId, float]] = {}
        self._of: dict[PeerId, bytes] = {}

    def __len__(self) -> int:
        return len(self._out)

    def issue(self, peer_id: PeerId) -> bytes | None:
        """A fresh ticket. None when too many are out."""
        self._drop(self._of.get(peer_id))
        self._expire()
        if len(self._out) >= MAX_TICKETS:
            return None
        ticket = secrets.token_bytes(TICKET_SIZE)
        self._out[ticket] = (peer_id, self._clock() + TICKET_LIFE)
        self._of[peer_id] = ticket
        return ticket

    def redeem(self, ticket: bytes) -> PeerId | None:
        """Whose it is, and never again. None when it is unknown, used or expired."""
        peer_id, until = self._out.get(ticket, (None, 0.0))
        self._drop(ticket)
        return peer_id if self._clock() < until else None

    def _expire(self) -> None:
        # Dictionaries keep their order and all lives are equal: the oldest stand first.
        while self._out:
            ticket, (_, until) = next(iter(self._out.items()))
            if self._clock() < until:
                return
            self._drop(ticket)

    def _drop(self, ticket: bytes | None) -> None:
        entry = self._out.pop(ticket, None) if ticket is not None else None
        if entry is not None:
            del self._of[entry[0]]
