"""An inference service over the nodes that a peer is linked with: finds one, asks it, and asks another before the first token.

1. Before the first token a request goes to at most `attempts` nodes, each once; after it, a loss is `stream_interrupted`.
2. Nothing waits without a bound: for a node `find`, for the first token `first_token`, for each next one `stall` seconds.
3. Nobody found in time is an error that says why, from the trail.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.client.choice import best_first, entry_of, offer_of
from mesh.errors import BackendFailed, Busy, MeshError, TimedOut, Unavailable
from mesh.messages.inference import Accepted, Delta, Done
from mesh.openai.errors import model_not_found
from mesh.service import paced, room

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.identity import PeerId
    from mesh.link import Link
    from mesh.loopback import Loopback
    from mesh.messages.inference import Event, InferenceRequest
    from mesh.peer import Peer
    from mesh.service import Emit

_OUT_OF_DATE = frozenset(("model_not_found", "leaving"))
"""What we knew of the node was old: another one may do."""


@dataclass(frozen=True, kw_only=True)
class Patience:
    """Bounds of one call; times in seconds."""

    find: float = 10.0
    """Until a node that can answer is linked."""
    settle: float = 2.0
    """Until a model is said not to exist, once some other node is linked."""
    first_token: float = 60.0
    stall: float = 60.0
    attempts: int = 4


class Asking:
    """See the head of this file for the rules. It is an `InferenceService`."""

    def __init__(self, peer: Peer, patience: Patience) -> None:
        self._peer = peer
        self._registry = peer.registry
        self._patience = patience

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request on the best node. Raises Unavailable, NotFound, TimedOut, or what the node said."""
        await self._find(request)
        tried: list[PeerId] = []
        failure: MeshError | None = None
        while len(tried) < self._patience.attempts and (link := self._next(request, tried)) is not None:
            tried.append(link.peer_id)
            accepted = Accepted(node=link.peer_id, attempts=len(tried), numerics=self._numerics(link, request.model))
            attempt = _Attempt(link, emit, self._patience, accepted)
            try:
                await attempt.run(request)
            except MeshError as error:
                if attempt.started or not _may_retry(error):
                    raise _interrupted(error, link) if attempt.started and error.retriable else error from error
                # Full says more than broken: the client may simply come again.
                failure = failure if isinstance(failure, Busy) else error
            else:
                return
        raise failure or Unavailable(f"the nodes that serve {request.model!r} just left; ask again", code="model_unavailable")

    async def wait_until(self, condition: Callable[[], bool], limit: float) -> bool:
        """Wait for something that events of the registry bring about, at most `limit` seconds. False when it did not come."""
        changed = trio.Event()
        unsubscribe = self._registry.subscribe(lambda _event: changed.set())
        try:
            with trio.move_on_after(limit):
                while not condition():
                    await changed.wait()
                    changed = trio.Event()
        finally:
            unsubscribe()
        return condition()

    def nobody(self) -> Unavailable:
        """Why there is no node to ask."""
        reasons = " ".join(self._peer.explain())
        return Unavailable(
            f"no node of mesh {self._peer.mesh!r} was found within {self._patience.find:g} s. {reasons}".strip(), code="no_peers"
        )

    async def _find(self, request: InferenceRequest) -> None:
        def offered() -> bool:
            return self._next(request, ()) is not None

        def known() -> bool:
            return any(entry_of(view, request.model) for view in self._registry.nodes())

        patience = self._patience
        started = trio.current_time()
        if await self.wait_until(lambda: offered() or bool(self._registry.nodes()), patience.find) and not known():
            self._peer.seek(request.model)
            await self.wait_until(known, patience.settle)
        if known():
            await self.wait_until(offered, patience.find - (trio.current_time() - started))
        if not offered():
            raise self._verdict(request, known())

    def _verdict(self, request: InferenceRequest, known: bool) -> MeshError:
        if not self._registry.nodes():
            return self.nobody()
        if not known:
            return model_not_found(request.model, {entry.id for entry in self._registry.catalog()})
        return Unavailable(
            f"no node can take a {request.task} request for {request.model!r} now; ask for another task, or try again later",
            code="model_unavailable",
        )

    def _numerics(self, link: Link | Loopback, model: str) -> str:
        """What the node announced: those with equal ones compute alike."""
        view = self._registry.peers.get(link.peer_id)
        entry = entry_of(view, model) if view is not None else None
        return entry.numerics if entry is not None else ""

    def _next(self, request: InferenceRequest, tried: list[PeerId] | tuple[()]) -> Link | Loopback | None:
        nodes = (view for view in self._registry.nodes(request.model) if view.peer_id not in tried)
        offers = (offer_of(view, request.model, request.task) for view in nodes)
        ranked = best_first(offer for offer in offers if offer is not None)
        return self._registry.peers[ranked[0].peer_id].link if ranked else None


class _Attempt:
    """One node's try at a request. `Accepted` is held back until there is an answer, so that only one is seen."""

    def __init__(self, link: Link | Loopback, emit: Emit, patience: Patience, accepted: Accepted) -> None:
        """`accepted` is what we know of the node ourselves."""
        self._link = link
        self._emit = emit
        self._patience = patience
        self._accepted = accepted
        self._scope = trio.CancelScope()
        self._ended = False
        self.started = False

    async def run(self, request: InferenceRequest) -> None:
        self._scope.deadline = trio.current_time() + self._patience.first_token
        with self._scope:
            await self._link.infer(request, paced(self._take, self._room))
        if self._ended:
            return
        if not self._scope.cancelled_caught:
            raise BackendFailed("the node stopped without ending its answer; send the request again", code="incomplete_answer")
        if self.started:
            raise TimedOut(f"{self._link.peer_id} sent nothing for {self._patience.stall:g} s", code="engine_stalled")
        raise TimedOut(f"{self._link.peer_id} sent no first token within {self._patience.first_token:g} s")

    async def _room(self) -> None:
        """Wait for the reader; meanwhile the node is not late."""
        self._scope.deadline = math.inf
        await room(self._emit)
        self._scope.deadline = trio.current_time() + self._patience.stall

    def _take(self, event: Event) -> None:
        if self._scope.cancel_called or self._ended:
            return
        match event:
            case Accepted():
                accepted = self._accepted
                self._accepted = msgspec.structs.replace(
                    event, node=accepted.node, attempts=accepted.attempts, numerics=accepted.numerics
                )
            case Delta() | Done():
                if not self.started:
                    self.started = True
                    self._emit(self._accepted)
                self._scope.deadline = trio.current_time() + self._patience.stall
                self._ended = isinstance(event, Done)
                self._emit(event)
            case _:
                pass


def _may_retry(error: MeshError) -> bool:
    return error.retriable or error.code in _OUT_OF_DATE


def _interrupted(error: MeshError, link: Link | Loopback) -> MeshError:
    return BackendFailed(
        f"{link.peer_id} was lost in the middle of the answer ({error.code}); send the request again", code="stream_interrupted"
    )
