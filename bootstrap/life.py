"""The life of a bootstrap peer: it tells others of each other, serves no model and takes no client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from mesh.messages.record import Hardware
from mesh.peer import Peer, PeerSettings
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport

if TYPE_CHECKING:
    from bootstrap.config import BootstrapConfig
    from mesh.runtime import Program


async def serve(program: Program, config: BootstrapConfig) -> None:
    """Be a peer of the mesh until the program stops."""
    settings = PeerSettings(
        identity=program.identity,
        role="bootstrap",
        name=program.name,
        mesh=program.access.mesh,
        bootstrap=program.access.bootstrap,
        mdns=config.mdns,
        access=program.access,
        hardware=Hardware(),
        ports={},
    )
    direct = DirectTransport(program.identity, config.listen) if config.direct else None
    peer = Peer(settings, Libp2pTransport(program.identity, config.listen), direct=direct)
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.run)
        program.ready(addresses=peer.addresses, http=None)
        await program.stopping.wait()
        await peer.close()
        nursery.cancel_scope.cancel()
