"""A program's peer on the real network: identity, access, both carriers and mDNS, put together as its configuration says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.best_links import LINKS_PER_MODEL
from mesh.messages.record import Hardware
from mesh.peer import Peer, PeerSettings
from mesh.relay.bounds import RelayBounds
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport

if TYPE_CHECKING:
    from mesh.config import CommonConfig
    from mesh.runtime import Program
    from mesh.service import InferenceService


def network_peer(
    program: Program,
    config: CommonConfig,
    service: InferenceService | None = None,
    *,
    hardware: Hardware | None = None,
    ports: dict[str, int] | None = None,
    links_per_model: int = LINKS_PER_MODEL,
) -> Peer:
    """The peer that `program` is; it does nothing until it runs. Raises Misconfigured for an address that is none."""
    settings = PeerSettings(
        identity=program.identity,
        role=program.role,
        name=program.name,
        mesh=program.access.mesh,
        bootstrap=program.access.bootstrap,
        mdns=config.mdns,
        access=program.access,
        hardware=hardware or Hardware(),
        ports=ports or {},
        links_per_model=links_per_model,
        relay=config.relay,
        relay_bounds=RelayBounds(circuits=config.relay_circuits, rate=config.relay_rate, total=config.relay_total),
    )
    direct = DirectTransport(program.identity, config.listen) if config.direct else None
    return Peer(settings, Libp2pTransport(program.identity, config.listen), service, direct=direct)
