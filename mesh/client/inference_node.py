"""The older Python API: a peer that asks others and may serve models of its own, in one object.

1. Between `start` and `stop` it is a node of the mesh that also asks. Its tasks end at `stop`, or with `trio.run`.
2. What it serves itself it answers itself only when no other node does.
"""

from __future__ import annotations

import enum
import os
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, TypedDict

import trio

from mesh.client.answer import Answer, AnswerStream
from mesh.client.client import MeshClient
from mesh.client.handlers import Handlers
from mesh.client.requests import chat_request, completion_request
from mesh.client.standing import check_addresses, open_standing
from mesh.errors import BadRequest, Misconfigured
from mesh.network import hash_table
from mesh.peer import Peer, PeerSettings
from mesh.runtime import display_name
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from mesh.client.handlers import Handler
    from mesh.identity import Identity
    from mesh.messages.inference import InferenceRequest
    from mesh.state import StateFolder
    from mesh.transport.base import Transport

_CHAT_TASKS = frozenset(("chat", "conversational"))
_COMPLETION_TASKS = frozenset(("completion", "text-generation"))


class PeerCapability(enum.Enum):
    """What the models of a peer can do; the values are the tasks of a request."""

    CHAT = "chat"
    TEXT_GENERATION = "completion"


class NodeOptions(TypedDict, total=False):
    """What `LibP2PInferenceNode` takes; every key may be missing."""

    bootstrap_peers: Sequence[str]
    enable_mdns: bool
    mesh: str
    private: bool
    state_dir: Path | str | None
    name: str
    listen: Sequence[str]


class LibP2PInferenceNode:
    """`node = LibP2PInferenceNode({"bootstrap_peers": [...]}); await node.start()`. trio only."""

    def __init__(self, options: NodeOptions | None = None, *, transport: Callable[[Identity], Transport] | None = None) -> None:
        """Raises Misconfigured for a key that is unknown. `transport` is libp2p unless a test has its own."""
        self._options: NodeOptions = options or {}
        for key in self._options:
            if key not in NodeOptions.__annotations__:
                raise Misconfigured(f"{key!r} is not an option; there are: {', '.join(NodeOptions.__annotations__)}")
        self._transport = transport
        self._handlers = Handlers(self._announce)
        self._peer: Peer | None = None
        self._client: MeshClient | None = None
        self._resources = ExitStack()
        self._folder: StateFolder | None = None
        self._scope = trio.CancelScope()
        self._settled = trio.Event()
        self._ended = trio.Event()
        self._error: BaseException | None = None

    @property
    def peer_id(self) -> str:
        """Ours. Raises RuntimeError before `start`."""
        return self._running().peer.peer_id

    @property
    def addresses(self) -> list[str]:
        """Where others reach us: full multiaddrs. Raises RuntimeError before `start`."""
        return self._running().peer.addresses

    async def start(self) -> None:
        """Join the mesh. Returns once every bootstrap address was tried. Raises Misconfigured and Denied."""
        if self._peer is not None:
            raise RuntimeError("this node was started already; make another one")
        try:
            self._peer = self._open()
        except BaseException:
            self._resources.close()
            raise
        self._announce()
        # There is no block that could own a nursery between start and stop: the tasks are trio's own, and end with its run.
        trio.lowlevel.spawn_system_task(self._live, MeshClient.around(self._peer))
        try:
            await self._settled.wait()
        except trio.Cancelled:
            self._scope.cancel()
            raise
        if self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """Leave the mesh. Requests that run are cancelled. May be called twice."""
        self._client = None
        self._scope.cancel()
        if self._peer is not None:
            await self._ended.wait()

    def register_capability(self, capability: PeerCapability) -> None:
        """Say what our models can do; without any, they are asked for everything. Others hear at once."""
        if capability.value not in self._handlers.tasks:
            self._handlers.tasks.append(capability.value)
            self._announce()

    def register_model(self, model: str, handler: Handler | None = None) -> None:
        """Serve a model: `handler` takes an InferenceRequest and yields pieces of text. Others hear at once.

        Without a handler the model is announced as loading, and nobody asks for it until it is registered again with one.
        """
        self._handlers.register(model, handler)

    async def submit_inference_request(
        self,
        task: str,
        model: str,
        inputs: str | Sequence[Mapping[str, Any]],
        parameters: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Ask the best node of the mesh. `task`: chat or text-generation; `parameters` as of `MeshClient.chat`."""
        client = self._running()
        request = _request(task, model, inputs, parameters or {})
        if self._handlers.serves(model) and not client.peer.registry.nodes(model):
            return await self._answer(request)
        return await client.ask(request)

    async def _answer(self, request: InferenceRequest) -> Answer:
        stream = AnswerStream()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stream.run, self._handlers, request)
        async for _ in stream:
            pass
        return stream.answer

    async def _live(self, client: MeshClient) -> None:
        try:
            with self._scope:
                async with client:
                    self._client = client
                    self._write_addresses(client.peer)
                    self._settled.set()
                    await trio.sleep_forever()
        except Exception as error:  # noqa: BLE001 - a system task must not raise; `start` does
            self._error = error
        finally:
            self._client = None
            self._resources.close()
            self._settled.set()
            self._ended.set()

    def _open(self) -> Peer:
        bootstrap = list(self._options.get("bootstrap_peers", []))
        if self._transport is None:
            check_addresses(bootstrap)
        standing = open_standing(
            self._resources,
            bootstrap=bootstrap,
            mesh=self._options.get("mesh", "default"),
            private=self._options.get("private", False),
            state_dir=self._options.get("state_dir"),
            founds=True,
        )
        self._folder = standing.folder
        identity, access = standing.identity, standing.access
        settings = PeerSettings(
            identity=identity,
            role="node",
            name=display_name(self._options.get("name", ""), identity.peer_id),
            mesh=access.mesh,
            bootstrap=access.bootstrap,
            access=access,
            mdns=self._options.get("enable_mdns", True),
            asks=True,
        )
        if self._transport is not None:
            return Peer(settings, self._transport(identity), self._handlers)
        listen = list(self._options.get("listen", ["/ip4/0.0.0.0/tcp/0"]))
        medium = Libp2pTransport(identity, listen)
        direct = DirectTransport(identity, listen)
        return Peer(
            settings, medium, self._handlers, direct=direct, dht=hash_table(medium, self._folder.path if self._folder else None)
        )

    def _write_addresses(self, peer: Peer) -> None:
        """For `mesh invite`, which lets others in by way of us."""
        if self._folder is not None:
            said = {"role": peer.role, "peer_id": peer.peer_id, "addresses": peer.addresses, "pid": os.getpid()}
            self._folder.write_addresses(said)

    def _announce(self) -> None:
        if self._peer is not None:
            self._peer.announce(self._handlers.entries(), self._handlers.load())

    def _running(self) -> MeshClient:
        if self._client is None:
            raise RuntimeError("the node does not run; call `await node.start()` first")
        return self._client


def _request(task: str, model: str, inputs: str | Sequence[Mapping[str, Any]], parameters: Mapping[str, Any]) -> InferenceRequest:
    if task not in _CHAT_TASKS | _COMPLETION_TASKS:
        known = ", ".join(sorted(_CHAT_TASKS | _COMPLETION_TASKS))
        raise BadRequest(f"the task {task[:64]!r} is not known; there are: {known}", code="unsupported_task", param="task")
    if not isinstance(inputs, str):
        return chat_request(model, inputs, parameters)
    if task in _CHAT_TASKS:
        return chat_request(model, [{"role": "user", "content": inputs}], parameters)
    return completion_request(model, inputs, parameters)
