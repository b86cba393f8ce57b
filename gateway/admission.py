"""Admission: how many requests may be under way in this gateway at once. One more is a 429, never a wait without end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.errors import Busy

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit, InferenceService

RETRY_AFTER = 1.0


class Admission:
    """An inference service in front of another one, with a bound."""

    def __init__(self, service: InferenceService, *, limit: int) -> None:
        self._service = service
        self._limit = limit
        self.in_flight = 0

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Pass the request on. Raises Busy when `limit` requests are under way."""
        if self.in_flight >= self._limit:
            message = f"this gateway has {self._limit} requests under way, its limit; try again in {RETRY_AFTER:g} s"
            raise Busy(message, code="gateway_full", retry_after=RETRY_AFTER)
        self.in_flight += 1
        try:
            await self._service.infer(request, emit)
        finally:
            self.in_flight -= 1
