"""Ways to hear of peers besides records: each only ever says whom to dial, and nothing it says is proven."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import trio

if TYPE_CHECKING:
    from mesh.identity import PeerId


class Sighting(Protocol):
    """Somebody who was heard of."""

    @property
    def peer_id(self) -> PeerId: ...
    @property
    def addresses(self) -> Sequence[str]: ...
    @property
    def mesh(self) -> str: ...
    @property
    def role(self) -> str: ...


class Discovery(Protocol):
    """One way of hearing."""

    async def run(self, found: Callable[[Any], None], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Announce us and call `found` with each Sighting, perhaps repeatedly, until cancelled. Raises MeshError if it cannot."""
        ...


class Announced(Protocol):
    """What a way of hearing may announce of us."""

    @property
    def peer_id(self) -> PeerId: ...
    @property
    def mesh(self) -> str: ...
    @property
    def role(self) -> str: ...
    @property
    def addresses(self) -> list[str]: ...


DiscoveryFactory = Callable[[Announced], Discovery]
"""Makes a way of hearing once the listeners are bound and the addresses are known."""


def mdns(peer: Announced) -> Discovery:
    """mDNS on the local network. Imported here alone: most peers in tests and many in clouds run without zeroconf."""
    module = importlib.import_module("mesh.discovery.mdns")
    discovery: Discovery = module.Mdns(peer_id=peer.peer_id, mesh=peer.mesh, role=peer.role, addresses=lambda: peer.addresses)
    return discovery
