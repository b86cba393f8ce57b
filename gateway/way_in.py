"""`GET /v1/mesh/bootstrap`: how a newcomer gets into the mesh by way of this gateway (contract, resolution 2).

1. Nothing secret is told: a private mesh still wants its key or an invite.
2. Who is asked over the network is told no loopback address: there it would be somebody else.
3. The addresses of a private mesh are told to programs on this machine alone, as long as the gateway has no keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.registry_view.routes import is_loopback, only_local
from mesh.addresses import is_loopback_address
from mesh.errors import Unavailable
from mesh.http import Response

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.http import Request, Router
    from mesh.peer import Peer


def _only_local(request: Request) -> None:
    only_local(request, what="the way into a private mesh is told")


class WayIn:
    """What a gateway's peer says of itself. `may_ask` raises Denied for those who may not know about a private mesh."""

    def __init__(self, peer: Peer, *, may_ask: Callable[[Request], None] = _only_local) -> None:
        self._peer = peer
        self._may_ask = may_ask

    def mount(self, router: Router) -> None:
        """Add the route."""
        router.add("GET", "/v1/mesh/bootstrap", self._answer)

    async def _answer(self, request: Request) -> Response:
        private = self._peer.settings.access.keyring is not None
        if private:
            self._may_ask(request)
        addresses = self._peer.addresses
        if not addresses:
            raise Unavailable("this gateway is still joining the mesh; ask again in a second", code="joining", retry_after=1)
        if not is_loopback(request.client):
            addresses = [address for address in addresses if not is_loopback_address(address)]
        said = {"peer_id": self._peer.peer_id, "addresses": addresses, "mesh": self._peer.mesh, "private": private}
        return Response.json(said)
