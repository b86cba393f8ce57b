"""A program's peer on the real network: identity, access, both carriers and mDNS, put together as its configuration says."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from mesh.best_links import LINKS_PER_MODEL
from mesh.discovery.dht import DhtSettings
from mesh.discovery.seeds import FILE
from mesh.messages.record import Hardware
from mesh.peer import Peer, PeerSettings
from mesh.relay.bounds import RelayBounds
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport
from mesh.transport.libp2p.kad import Kademlia

if TYPE_CHECKING:
    from pathlib import Path

    from mesh.config import CommonConfig
    from mesh.runtime import Program
    from mesh.service import InferenceService


def hash_table(transport: Libp2pTransport, state_dir: Path | None) -> DhtSettings:
    """The distributed hash table over a transport; what leads back into it is kept in the state folder, if there is one."""
    return DhtSettings(table=partial(Kademlia, transport), seeds=state_dir / FILE if state_dir is not None else None)


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
    transport = Libp2pTransport(program.identity, config.listen)
    dht = hash_table(transport, program.state_dir) if config.dht else None
    return Peer(settings, transport, service, direct=direct, dht=dht)
