"""A mesh in memory: real peers and links, with nodes whose services do what a script says."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import httpx2
import msgspec
import pytest
import trio

from gateway.app import Gateway
from gateway.dispatch import DispatchLimits
from mesh.http import serve
from mesh.identity import Identity
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, Hardware, ModelEntry
from mesh.peer import Peer, PeerSettings
from mesh.service import Emit
from mesh.transport.memory import MemoryNetwork, MemoryTransport
from tests.gateway.served import Client, Served

if TYPE_CHECKING:
    from mesh.errors import MeshError

DONE = Done("stop", Usage(3, 4), Performance(1.0, 2.0, 0.0, 100.0, 1))
WORDS = ["a", "b", "c", "d"]
Step = Callable[[InferenceRequest, Emit], Awaitable[None]]


async def answer(request: InferenceRequest, emit: Emit) -> None:
    emit(Accepted(running=1))
    given = len(request.prior[0]) if request.prior else 0
    for offset, word in list(enumerate(WORDS))[given:]:
        await trio.lowlevel.checkpoint()
        emit(Delta(offset, [offset + 100], word))
    emit(DONE)


def fail(error: MeshError, *, after: int = 0) -> Step:
    async def step(request: InferenceRequest, emit: Emit) -> None:
        emit(Accepted(running=1))
        for offset in range(after):
            emit(Delta(offset, [offset + 100], WORDS[offset]))
        await trio.sleep(0.01)
        raise error

    return step


@dataclass
class Node:
    """One node of the mesh. Each request takes the next step of `script`, or `answer` when there is none."""

    peer: Peer
    network: MemoryNetwork
    models: list[ModelEntry]
    script: list[Step] = field(default_factory=list)
    requests: list[InferenceRequest] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    ended: trio.Event = field(default_factory=trio.Event)
    numerics: str = ""
    continues: bool = False

    @property
    def peer_id(self) -> str:
        return self.peer.identity.peer_id

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        self.requests.append(request)
        step = self.script.pop(0) if self.script else answer
        try:
            await step(request, emit)
        except trio.Cancelled:
            self.cancelled.append(request.request_id)
            raise
        finally:
            self.ended.set()

    def announce(self, state: str = "ready", *, running: int = 0, waiting: int = 0, slots: int = 4) -> None:
        replace = msgspec.structs.replace
        self.models = [
            replace(
                entry, state=state, numerics=self.numerics, capabilities=replace(entry.capabilities, continues=self.continues)
            )
            for entry in self.models
        ]
        load = ModelLoad(state=state, running=running, waiting=waiting, slots=slots, uptime=77 if state == "ready" else 0)
        self.peer.announce(self.models, {entry.id: load for entry in self.models})

    def kill(self) -> None:
        self.network.kill(self.peer.identity.peer_id)


class Mesh:
    """A gateway's peer, and nodes that it finds through bootstrap addresses."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.network = MemoryNetwork(latency=0.001)
        self.gateway = self._peer("gateway", "gateway", [], None)
        self._numbers = itertools.count(1)

    def _peer(self, role, name, bootstrap, service) -> Peer:
        settings = PeerSettings(
            identity=Identity.generate(),
            role=role,
            name=name,
            mesh="test",
            bootstrap=bootstrap,
            mdns=False,
            hardware=Hardware(),
            ports={},
        )
        return Peer(settings, MemoryTransport(settings.identity, self.network), service)

    async def start(self) -> None:
        await self.nursery.start(self.gateway.run)

    async def node(
        self,
        *script: Step,
        models: tuple[str, ...] = ("m",),
        aliases: tuple[str, ...] = (),
        tasks=(),
        state="ready",
        measure=None,
        continues: bool = False,
    ) -> Node:
        """Add a node and wait until the gateway has a link to it that says so. `measure` tells its metrics."""
        able = Capabilities(tasks=list(tasks))
        entries = [ModelEntry(id=model, aliases=list(aliases), capabilities=able) for model in models]
        holder: list[Node] = []

        class Service:
            async def infer(self, request: InferenceRequest, emit: Emit) -> None:
                await holder[0].infer(request, emit)

        peer = self._peer("node", f"node-{next(self._numbers)}", list(self.gateway.addresses), Service())
        node = Node(peer, self.network, entries, list(script), continues=continues)
        holder.append(node)
        peer.measuring.measure = measure
        node.announce(state)
        await self.nursery.start(peer.run)
        await self.until(lambda: self._sees(node, state))
        return node

    async def other_gateway(self) -> None:
        """Add a second gateway and wait until the first has a link to it."""
        other = self._peer("gateway", "other", list(self.gateway.addresses), None)
        await self.nursery.start(other.run)
        await self.until(lambda: other.identity.peer_id in self.gateway.links)

    def _sees(self, node: Node, state: str) -> bool:
        view = self.gateway.registry.peers.get(node.peer_id)
        if view is None or view.link is None:
            return False
        return all(view.link.load.get(entry.id, ModelLoad("failed")).state == state for entry in node.models)

    def entry(self, node: Node) -> ModelEntry:
        """As the gateway knows it."""
        return self.gateway.registry.peers[node.peer_id].record.models[0]

    def numerics(self, node: Node) -> str:
        """As the gateway knows it."""
        return self.entry(node).numerics

    async def until(self, condition: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not condition():  # noqa: ASYNC110 - the conditions are of many kinds, and no event tells of them all
                await trio.sleep(0.01)

    async def sees(self, node: Node, state: str) -> None:
        await self.until(lambda: self._sees(node, state))


@pytest.fixture
async def mesh(nursery):
    built = Mesh(nursery)
    await built.start()
    return built


@pytest.fixture
def failing():
    """A step of a script: accept, emit some tokens, raise."""
    return fail


@pytest.fixture
def words():
    return WORDS


@pytest.fixture
async def served(mesh, nursery):
    gateway = Gateway(mesh.gateway.registry, strategy="round_robin", limits=DispatchLimits(queue_wait=0.2))
    stopping = trio.Event()
    nursery.start_soon(gateway.run)
    holder: list[Served] = []

    async def listen(*, task_status):
        await serve(gateway.router, "127.0.0.1", 0, stopping=stopping, task_status=task_status)
        holder[0].stopped.set()

    port = await nursery.start(listen)
    holder.append(Served(gateway, port, stopping))
    return holder[0]


@pytest.fixture
async def http():
    async with httpx2.AsyncClient(timeout=10) as client:
        yield client


@pytest.fixture
def opened(served):
    """Open a socket and take its greeting."""

    class Opened:
        def __init__(self, client_id: str = "me") -> None:
            self._context = served.socket(client_id)

        async def __aenter__(self) -> Client:
            client = Client(await self._context.__aenter__())
            assert (await client.next())["type"] == "connection"
            return client

        async def __aexit__(self, *error) -> None:
            await self._context.__aexit__(*error)

    return Opened
