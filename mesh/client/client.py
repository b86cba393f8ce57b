"""The mesh from a Python program: find nodes, see their models, ask them. No gateway is needed.

1. A client is a peer that listens nowhere and serves nothing; inside `async with` its tasks run, after it nothing does.
2. Every call is bounded (`Patience`); what goes wrong is a `MeshError` that says what to do.
3. An error that leaves the `async with` block leaves it as it was raised, in no exception group.
"""

from __future__ import annotations

from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from mesh.best_links import LINKS_PER_MODEL
from mesh.client.answer import Answer, AnswerStream, Embeddings
from mesh.client.asking import Asking, Patience
from mesh.client.requests import Sampling, chat_request, completion_request, embedding_request
from mesh.client.standing import check_addresses, open_standing
from mesh.embedding import embed
from mesh.network import hash_table
from mesh.peer import Peer, PeerSettings
from mesh.runtime import display_name
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport
from mesh.vectors import unpack

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType
    from typing import Self, Unpack

    from mesh.client.blocking import BlockingMeshClient
    from mesh.identity import Identity
    from mesh.messages.inference import Accepted, InferenceRequest
    from mesh.messages.record import ModelEntry
    from mesh.transport.base import Transport

GOODBYE = 1.0
"""Seconds that the others get to hear that we leave."""


@dataclass(frozen=True, kw_only=True)
class MeshNode:
    """A node that the client is linked with. `rtt` in seconds, None until measured."""

    peer_id: str
    name: str
    models: list[str]
    rtt: float | None


class MeshClient:
    """`async with MeshClient(bootstrap=[...]) as client:`; trio only. See the head of this file for the rules."""

    def __init__(
        self,
        *,
        bootstrap: Iterable[str] = (),
        mdns: bool = True,
        dht: bool = True,
        mesh: str = "default",
        private: bool = False,
        name: str = "",
        state_dir: Path | str | None = None,
        patience: Patience | None = None,
        links_per_model: int = LINKS_PER_MODEL,
        transport: Callable[[Identity], Transport] | None = None,
    ) -> None:
        """`bootstrap`: addresses and invites. `state_dir` keeps identity and network key. `private`: join no mesh without a key.

        `transport` is libp2p unless a test has its own. Entering raises Misconfigured for what is no address or invite, or a
        state folder that is in use; Denied when a private mesh does not let us in.
        """
        self._bootstrap = list(bootstrap)
        self._mesh = mesh
        self._private = private
        self._state_dir = state_dir
        self._settings = {"mdns": mdns, "links_per_model": links_per_model}
        self._dht = dht
        self._name = name
        self._patience = patience or Patience()
        self._transport = transport
        self._peer: Peer | None = None
        self._asking: Asking | None = None
        self._nursery: trio.Nursery | None = None
        self._manager: AbstractAsyncContextManager[trio.Nursery] | None = None
        self._resources = ExitStack()

    @classmethod
    def around(cls, peer: Peer, *, patience: Patience | None = None) -> Self:
        """A client over a peer of your own, which asks (`PeerSettings.asks`) and has not run yet. Entering runs it."""
        client = cls(patience=patience)
        client._peer = peer
        return client

    @staticmethod
    def sync(**options: Any) -> BlockingMeshClient:
        """The same for programs without trio: `with MeshClient.sync(...) as client:`. Takes what `MeshClient` takes."""
        from mesh.client.blocking import BlockingMeshClient

        return BlockingMeshClient(**options)

    async def __aenter__(self) -> Self:
        """Join. Returns once every bootstrap address was tried, at most about 5 s; nodes may be found later."""
        try:
            self._peer = self._peer or self._open()
            self._asking = Asking(self._peer, self._patience)
            self._manager = trio.open_nursery()
            self._nursery = await self._manager.__aenter__()
            await self._nursery.start(self._peer.run)
        except BaseException as error:
            if self._nursery is None:
                self._resources.close()
                raise
            await self._close(type(error), error, error.__traceback__)
            raise _inner(error, keep=None) from None
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Leave; what still runs is cancelled. Takes at most GOODBYE seconds."""
        with trio.move_on_after(GOODBYE, shield=True):
            await self.peer.close("the client ends")
        await self._close(kind, error, trace)

    @property
    def peer(self) -> Peer:
        """The peer underneath, for what this class does not offer. Raises RuntimeError outside `async with`."""
        if self._peer is None or self._nursery is None:
            raise RuntimeError("enter the client first: `async with MeshClient(...) as client:`")
        return self._peer

    async def models(self) -> list[ModelEntry]:
        """The models of all linked nodes, each once, sorted. Waits for the first. Raises Unavailable when none comes."""
        catalog = self.peer.registry.catalog
        assert self._asking is not None
        if not await self._asking.wait_until(lambda: bool(catalog()), self._patience.find):
            raise self._asking.nobody()
        return catalog()

    def nodes(self) -> list[MeshNode]:
        """The nodes that are linked now. Never waits."""
        return [
            MeshNode(
                peer_id=view.peer_id,
                name=view.record.name,
                models=[entry.id for entry in view.models],
                rtt=view.link.rtt if view.link is not None else None,
            )
            for view in self.peer.registry.nodes()
        ]

    async def chat(self, model: str, messages: Iterable[Mapping[str, Any]], **sampling: Unpack[Sampling]) -> Answer:
        """Ask a model, get the whole answer. `messages` in OpenAI's shape. Raises MeshError."""
        return await self.ask(chat_request(model, messages, sampling))

    async def complete(self, model: str, prompt: str, **sampling: Unpack[Sampling]) -> Answer:
        """Let a model continue a text. Raises MeshError."""
        return await self.ask(completion_request(model, prompt, sampling))

    async def embed(
        self, model: str, inputs: str | Sequence[str | int | list[int]], *, dimensions: int | None = None
    ) -> Embeddings:
        """The vectors of a text, token ids, or up to 2,048 of either, however many requests that takes. Raises MeshError."""
        assert self.peer is not None
        assert self._asking is not None
        request, each = embedding_request(model, inputs, dimensions)
        vectors: list[list[float]] = []

        async def take(part: list[bytes], _accepted: Accepted) -> None:
            vectors.extend(unpack(vector) for vector in part)

        embedded = await embed(self._asking, request, each, take, field="inputs")
        return Embeddings(vectors=vectors, prompt_tokens=embedded.tokens, node=embedded.accepted.node)

    @asynccontextmanager
    async def stream(
        self, model: str, messages: Iterable[Mapping[str, Any]], **sampling: Unpack[Sampling]
    ) -> AsyncIterator[AnswerStream]:
        """`async with client.stream(...) as stream: async for piece in stream: ...`; leaving the block cancels the work."""
        stream = self._begin(chat_request(model, messages, sampling))
        try:
            yield stream
        finally:
            await stream.aclose()

    async def ask(self, request: InferenceRequest) -> Answer:
        """Run a request of your own making to its end. Raises MeshError."""
        stream = self._begin(request)
        try:
            async for _ in stream:
                pass
        finally:
            await stream.aclose()
        return stream.answer

    def _begin(self, request: InferenceRequest) -> AnswerStream:
        assert self.peer is not None
        assert self._asking is not None
        assert self._nursery is not None
        stream = AnswerStream()
        self._nursery.start_soon(stream.run, self._asking, request)
        return stream

    def _open(self) -> Peer:
        if self._transport is None:
            check_addresses(self._bootstrap)
        standing = open_standing(
            self._resources,
            bootstrap=self._bootstrap,
            mesh=self._mesh,
            private=self._private,
            state_dir=self._state_dir,
            founds=False,
        )
        identity, access = standing.identity, standing.access
        settings = PeerSettings(
            identity=identity,
            role="client",
            name=display_name(self._name, identity.peer_id),
            mesh=access.mesh,
            bootstrap=access.bootstrap,
            access=access,
            **self._settings,  # type: ignore[arg-type]  # by name
        )
        if self._transport is not None:
            return Peer(settings, self._transport(identity))
        medium = Libp2pTransport(identity, [])
        dht = hash_table(medium, Path(self._state_dir) if self._state_dir is not None else None) if self._dht else None
        return Peer(settings, medium, direct=DirectTransport(identity, []), dht=dht)

    async def _close(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._nursery is not None
        assert self._manager is not None
        self._nursery.cancel_scope.cancel()
        self._nursery = None
        try:
            await self._manager.__aexit__(kind, error, trace)
        except BaseExceptionGroup as group:
            if len(group.exceptions) == 1:
                raise _inner(group.exceptions[0], keep=error) from None
            raise
        finally:
            self._resources.close()


def _inner(error: BaseException, *, keep: BaseException | None) -> BaseException:
    """What a nursery wrapped: down to the error of the body, or to the only one that a task raised."""
    while error is not keep and isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
