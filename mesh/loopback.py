"""What this process serves by itself, as a link from itself to itself: a gateway's own services need no network.

1. It is always there: it never closes, never leaves, and its round trip is zero.
2. The own registry sees every model; others hear of as many as fit into the signed record, in the order given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import NotFound
from mesh.record import MAX_RECORD, read_unchecked

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mesh.messages.inference import InferenceRequest
    from mesh.messages.link import Attach, ModelLoad
    from mesh.messages.record import ModelEntry
    from mesh.peer import Peer
    from mesh.service import Emit, InferenceService

SPARE = 256
"""Bytes of the record that stay free: it must not break when an address more is found."""


class Loopback:
    """The part of a `Link` that routing asks for. `offer` says what there is."""

    carrier = None
    via = None
    dialled = True
    leaving = False
    serving = 0
    rtt: float | None = 0.0
    remote_address = ""
    reason = ""

    def __init__(self, peer: Peer, service: InferenceService) -> None:
        self.peer_id = peer.peer_id
        self.load: dict[str, ModelLoad] = {}
        self.closed = trio.Event()
        self.in_flight = 0
        self._peer = peer
        self._service = service

    def offer(self, models: Sequence[ModelEntry], load: Mapping[str, ModelLoad]) -> int:
        """Serve these models to ourselves and announce them to others. Returns how many of them the others hear of.

        Never blocks. No models: we serve nothing any more.
        """
        told = self._fitting(models)
        self._peer.announce(told, {entry.id: load[entry.id] for entry in told})
        record = msgspec.structs.replace(read_unchecked(self._peer.sealed), models=list(models))
        self.load = dict(load)
        self._peer.registry.serve(self, record, self._peer.sealed)
        return len(told)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Ask the own service."""
        self.in_flight += 1
        try:
            await self._service.infer(request, emit)
        finally:
            self.in_flight -= 1

    async def attach(self, _wanted: Attach, _emit: Emit) -> None:
        """Own services keep nothing. Raises NotFound."""
        raise NotFound("nothing is kept here; send the request again", code="stream_not_found")

    def _fitting(self, models: Sequence[ModelEntry]) -> list[ModelEntry]:
        bare = msgspec.structs.replace(read_unchecked(self._peer.sealed), models=[])
        room = MAX_RECORD - SPARE - len(msgspec.msgpack.encode(bare))
        fitting: list[ModelEntry] = []
        for entry in models:
            room -= len(msgspec.msgpack.encode(entry))
            if room < 0:
                break
            fitting.append(entry)
        return fitting
