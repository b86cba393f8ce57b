"""Runs the ways of hearing of others, and notes in the trail what each hears.

1. A way that fails begins again every `PAUSE` seconds: what was in its way may be gone. One that breaks ends alone.
2. Peers of other meshes are noted, never dialled.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from mesh.errors import MeshError
from mesh.trail import LOCAL, NOTE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from mesh.sightings import Announced, Discovery, DiscoveryFactory, Sighting
    from mesh.trail import Trail

LOOK = 3.0
"""Seconds until a way should have heard at least ourselves; then between two looks."""

PAUSE = 30.0
INTERFACES = "interfaces"
"""The target in the trail that says where a way listens."""

logger = logging.getLogger(__name__)


class Hearing:
    """`found(way, sighting)` is called for each peer of our mesh that one of `ways` hears of."""

    def __init__(self, ways: Mapping[str, DiscoveryFactory], trail: Trail, found: Callable[[str, Sighting], None]) -> None:
        self._ways = dict(ways)
        self._trail = trail
        self._found = found
        self._scope = trio.CancelScope()

    def stop(self) -> None:
        """Hear, and announce, nothing more."""
        self._scope.cancel()

    async def run(self, peer: Announced) -> None:
        """Hear by all ways, and announce `peer`, until stopped."""
        with self._scope:
            async with trio.open_nursery() as nursery:
                for way, factory in self._ways.items():
                    nursery.start_soon(self._hear, way, factory, peer)

    async def _hear(self, way: str, factory: DiscoveryFactory, peer: Announced) -> None:
        self._trail.add(way, LOCAL, "has heard of nobody yet")
        while await self._fails(way, factory, peer):  # noqa: ASYNC110 - a try is no condition
            await trio.sleep(PAUSE)

    async def _fails(self, way: str, factory: DiscoveryFactory, peer: Announced) -> bool:
        """Hear by one way until it ends. True when it failed in a way that may pass."""
        failed = False
        try:
            discovery = factory(peer)
            async with trio.open_nursery() as nursery:
                await nursery.start(discovery.run, lambda sighting: self._sighted(way, sighting, peer))
                await self._look(way, discovery)
        except* MeshError as group:
            error = _first(group)
            if self._trail.add(way, LOCAL, error.message, code=error.code):
                logger.warning("%s does not work: %s", way, error.message)
            failed = True
        except* Exception as group:
            self._trail.add(way, LOCAL, "it broke; the log says why", code="broken")
            logger.exception("%s broke", way, exc_info=group)
        return failed

    async def _look(self, way: str, discovery: Discovery) -> None:
        """Note where it listens, and whether that works at all; a way that cannot tell is left alone."""
        if not getattr(discovery, "interfaces", ()):
            return
        while True:
            where = ", ".join(getattr(discovery, "interfaces", ())) or "no interface"
            if self._trail.outcome(way, INTERFACES) != (listens := f"listens on {where}"):
                self._trail.add(way, INTERFACES, listens, code=NOTE)
            await trio.sleep(LOOK)
            deaf = not getattr(discovery, "heard_itself", True)
            heard = "nobody, not even itself" if deaf else "nobody yet"
            if self._trail.outcome(way, LOCAL).startswith("has heard of nobody"):
                self._trail.add(way, LOCAL, f"has heard of {heard}, on {where}", code="deaf" if deaf else "")

    def _sighted(self, way: str, sighting: Sighting, peer: Announced) -> None:
        if sighting.peer_id == peer.peer_id:
            return
        if sighting.mesh != peer.mesh:
            outcome = f"it is in mesh {sighting.mesh[:64]!r}, not {peer.mesh!r}"
            self._trail.add(way, sighting.peer_id, outcome, code="other_mesh")
            return
        self._trail.add(way, LOCAL, f"last heard of {sighting.role} {sighting.peer_id}", code="heard")
        self._found(way, sighting)


def _first(group: BaseExceptionGroup[MeshError]) -> MeshError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
