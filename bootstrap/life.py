"""The life of a bootstrap peer: it tells others of each other, serves no model and takes no client."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from mesh.network import network_peer

if TYPE_CHECKING:
    from bootstrap.config import BootstrapConfig
    from mesh.runtime import Program


async def serve(program: Program, config: BootstrapConfig) -> None:
    """Be a peer of the mesh until the program stops."""
    peer = network_peer(program, config)
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.run)
        program.ready(addresses=peer.addresses, http=None)
        await program.stopping.wait()
        await peer.close()
        nursery.cancel_scope.cancel()
