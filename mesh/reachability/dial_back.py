"""Dials others back, to tell them whether they can be dialled. Not to be used against anybody else:

1. Only addresses of the asker's own: at the host that its link comes from, or announced in its signed record; with its peer id,
   by IP address, and never over a relay. In an open mesh they are near ones; loopback is tried for this machine's peers only.
2. `BURST` questions of a peer at once, then one in `EVERY` seconds; `MAX_ADDRESSES` tries for each, `MAX_TRIES` of all peers at a
   time, each for `TRY_LIMIT` seconds. Who answers there must prove the asker's peer id; nothing else is said to it.
3. Who is linked over a relay comes from no host that we know, and is refused.
"""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

import trio

from mesh.addresses import ip_of, is_near, is_relayed, names
from mesh.errors import MeshError
from mesh.messages.reachability import DialedBack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.messages.reachability import DialBack
    from mesh.transport.streams import Streams

BURST = 4
EVERY = 20.0
MAX_ASKED = 16
"""Addresses of one question that are looked at."""
MAX_ADDRESSES = 4
MAX_TRIES = 8
TRY_LIMIT = 3.0
MAX_ASKERS = 4_096
"""Whose questions are counted; those that asked longest ago go first."""


class DialBacks:
    """`announced` gives the addresses of a peer's newest record."""

    def __init__(self, streams: Streams, announced: Callable[[PeerId], Iterable[str]], *, open_mesh: bool) -> None:
        self._streams = streams
        self._announced = announced
        self._open_mesh = open_mesh
        self._tries = trio.CapacityLimiter(MAX_TRIES)
        self._credit: dict[PeerId, tuple[float, float]] = {}

    async def answer(self, link: Link, question: DialBack) -> None:
        """Try what a linked peer asks for and tell it. Blocks for as long as the tries take."""
        if link.via is not None:
            link.send(DialedBack(code="relayed", message="the link goes over a relay"))
        elif not self._allow(link.peer_id):
            link.send(DialedBack(code="too_often", message=f"once in {EVERY:g} s is enough"))
        else:
            allowed = [one for one in dict.fromkeys(question.addresses[:MAX_ASKED]) if self._is_own(link, one)]
            allowed.sort(key=lambda one: str(ip_of(one)) != _host(link))
            link.send(DialedBack(await self._reach(allowed[:MAX_ADDRESSES]), seen_as=_host(link)))

    async def _reach(self, addresses: list[str]) -> list[str]:
        reached: set[str] = set()

        async def attempt(address: str) -> None:
            async with self._tries:
                with trio.move_on_after(TRY_LIMIT):
                    try:
                        await self._streams.probe(address)
                    except MeshError:
                        return
                    reached.add(address)

        async with trio.open_nursery() as nursery:
            for address in addresses:
                nursery.start_soon(attempt, address)
        return [address for address in addresses if address in reached]

    def _allow(self, peer_id: PeerId) -> bool:
        """Take one question of the peer's credit, which grows with time."""
        now = trio.current_time()
        at, credit = self._credit.pop(peer_id, (now, float(BURST)))
        credit = min(BURST, credit + (now - at) / EVERY)
        self._credit[peer_id] = (now, credit - 1 if credit >= 1 else credit)
        if len(self._credit) > MAX_ASKERS:
            del self._credit[next(iter(self._credit))]
        return credit >= 1

    def _is_own(self, link: Link, address: str) -> bool:
        ip = ip_of(address)
        if ip is None or is_relayed(address) or not names(address, link.peer_id):
            return False
        if ip.is_multicast or ip.is_unspecified or (self._open_mesh and not is_near(address)):
            return False
        host = _host(link)
        if ip.is_loopback and not (host and ipaddress.ip_address(host).is_loopback):
            return False
        return str(ip) == host or address in self._announced(link.peer_id)


def _host(link: Link) -> str:
    ip = ip_of(link.remote_address)
    return "" if ip is None else str(ip)
