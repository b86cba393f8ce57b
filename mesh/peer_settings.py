"""What a program decides about its peer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.access import Access
from mesh.best_links import LINKS_PER_MODEL
from mesh.link.proof import Credentials
from mesh.messages.record import Hardware
from mesh.relay.bounds import RelayBounds

if TYPE_CHECKING:
    from mesh.identity import Identity
    from mesh.messages.record import Role


@dataclass(frozen=True, kw_only=True)
class PeerSettings:
    """`bootstrap` holds full multiaddrs, several of one peer or of many. `access` makes the mesh a private one."""

    identity: Identity
    role: Role
    name: str
    mesh: str = "default"
    bootstrap: list[str] = field(default_factory=list)
    mdns: bool = False
    access: Access = field(default_factory=Access)
    hardware: Hardware = field(default_factory=Hardware)
    ports: dict[str, int] = field(default_factory=dict)
    limits: dict[str, int] = field(default_factory=dict)
    asks: bool | None = None
    """It dials the nodes that it learns of, to ask them. None: a gateway and a client do, the others do not."""
    links_per_model: int = LINKS_PER_MODEL
    """How many nodes of one model are linked at most, where it asks."""
    relay: bool | None = None
    """It joins others that cannot dial each other. None: a bootstrap peer does, and who is known to be reachable."""
    relay_bounds: RelayBounds = field(default_factory=RelayBounds)

    @property
    def credentials(self) -> Credentials | None:
        """What proves that we are of a private mesh; None in an open one."""
        access = self.access
        if access.keyring is None:
            return None
        return Credentials(own=self.identity.peer_id, keyring=access.keyring, invites=access.invites)
