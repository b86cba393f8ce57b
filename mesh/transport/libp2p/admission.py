"""Who may have a place among the inbound connections: data alone; the transport opens and closes.

1. There are `limit` places, at most `max_unproven` of them for connections whose peer has not proven itself yet. When those are
   all taken, the oldest one of the address that holds most of them makes room: who opens many turns out its own.
2. When all places are taken, the oldest connection without a channel makes room. One with a channel never does.
3. A peer has `MAX_PER_PEER` connections at once, opens `PEER_BURST` in a row and then `PEER_RATE` a second; an address may prove
   peers `ADDRESS_BURST` times in a row and then `ADDRESS_RATE` times a second. So neither one key nor one machine with many
   keys can keep us busy with handshakes.
4. What is remembered of peers and addresses is bounded.
"""

from __future__ import annotations

import ipaddress
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_PER_PEER = 64
"""Two peers need one connection for their link, and one more for each that is relayed or for protocols beside it."""
PEER_BURST = 128
PEER_RATE = 8.0
ADDRESS_BURST = 512
ADDRESS_RATE = 32.0
"""A handshake costs about five milliseconds of one core."""
MAX_REMEMBERED = 4_096
"""Peers, and addresses, whose rate is known; the latest."""


class Allowance:
    """A token bucket: `burst` in a row, then `rate` a second."""

    __slots__ = ("_burst", "_left", "_rate", "_since")

    def __init__(self, burst: float, rate: float) -> None:
        self._burst = self._left = burst
        self._rate = rate
        self._since = trio.current_time()

    def take(self) -> bool:
        """Use one up. False when there is none."""
        if not self.any():
            return False
        self._left -= 1
        return True

    @property
    def wait(self) -> float:
        """Seconds until there is one to take."""
        return 0.0 if self.any() else (1 - self._left) / self._rate

    def any(self) -> bool:
        """True when there is one to take."""
        now = trio.current_time()
        self._left = min(self._burst, self._left + (now - self._since) * self._rate)
        self._since = now
        return self._left >= 1


@dataclass(slots=True, eq=False)
class Place:
    """One inbound connection. `end` closes it; `has_channel` tells whether it is more than a stranger's."""

    address: str
    end: Callable[[], None]
    has_channel: Callable[[], bool]
    peer_id: str | None = None


class Admission:
    """See the head of this file for the rules."""

    def __init__(self, limit: int, max_unproven: int) -> None:
        self._limit = limit
        self._max_unproven = max_unproven
        # Both in order of age.
        self._unproven: dict[Place, None] = {}
        self._proven: dict[Place, None] = {}
        self._addresses: dict[str, Allowance] = {}
        self._peers: dict[str, Allowance] = {}

    def __len__(self) -> int:
        """Places taken."""
        return len(self._unproven) + len(self._proven)

    def enter(self, host: str, end: Callable[[], None], has_channel: Callable[[], bool]) -> Place | None:
        """A place for a connection from `host`; None when there is none for it. It may end another one."""
        place = Place(_neighbourhood(host), end, has_channel)
        if not self._allowance(self._addresses, place.address, ADDRESS_BURST, ADDRESS_RATE).any():
            return None
        if len(self._unproven) >= self._max_unproven:
            self._evict(self._most_crowded())
        if len(self) >= self._limit and not self._evict_stranger():
            return None
        self._unproven[place] = None
        return place

    def prove(self, place: Place, peer_id: str) -> bool:
        """The connection's peer is proven. False when it has too many, or comes too often: then the connection must end."""
        if place not in self._unproven:
            return False
        self.leave(place)
        place.peer_id = peer_id
        self._allowance(self._addresses, place.address, ADDRESS_BURST, ADDRESS_RATE).take()
        often = not self._allowance(self._peers, peer_id, PEER_BURST, PEER_RATE).take()
        if often or sum(other.peer_id == peer_id for other in self._proven) >= MAX_PER_PEER:
            return False
        self._proven[place] = None
        return True

    def leave(self, place: Place) -> None:
        """The connection ended. May be called twice."""
        self._unproven.pop(place, None)
        self._proven.pop(place, None)

    def _most_crowded(self) -> Place:
        crowds = Counter(place.address for place in self._unproven)
        (address, _), *_ = crowds.most_common(1)
        return next(place for place in self._unproven if place.address == address)

    def _evict_stranger(self) -> bool:
        stranger = next((place for place in self._proven if not place.has_channel()), None)
        if stranger is None and self._unproven:
            stranger = self._most_crowded()
        if stranger is not None:
            self._evict(stranger)
        return stranger is not None

    def _evict(self, place: Place) -> None:
        self.leave(place)
        place.end()

    @staticmethod
    def _allowance(table: dict[str, Allowance], key: str, burst: float, rate: float) -> Allowance:
        # Taken out and put back: the table is in order of use.
        table[key] = allowance = table.pop(key, None) or Allowance(burst, rate)
        if len(table) > MAX_REMEMBERED:
            del table[next(iter(table))]
        return allowance


def _neighbourhood(host: str) -> str:
    """What one machine can claim: its IPv4 address, or the 64-bit network of its IPv6 address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.ip_network((address.packed, 64), strict=False))
