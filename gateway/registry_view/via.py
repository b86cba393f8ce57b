"""Finds out when a gateway was registered as a foreign service of its own mesh: requests would go round and round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.errors import Conflict
from mesh.http.keys import KeyedRouter
from mesh.openai.remote.client import VIA

if TYPE_CHECKING:
    from mesh.http import Request
    from mesh.http.message import AnyResponse
    from mesh.registry import Registry


class GuardedRouter(KeyedRouter):
    """A router that refuses what comes from this mesh by way of a foreign service."""

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self._registry = registry

    async def answer(self, request: Request) -> AnyResponse:
        """As `Router`. Raises Conflict as well."""
        via = request.headers.get(VIA)
        if via and (via == self._registry.own or via in self._registry.peers):
            raise Conflict(
                f"this gateway is in the same mesh as {via}, which has it registered as a foreign service; remove that service",
                code="same_mesh",
            )
        return await super().answer(request)
