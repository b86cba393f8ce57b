"""A mesh in memory with nodes that keep what they give out, and gateways behind real ports."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx2
import pytest
import trio
from websockets.trio.client import connect

from gateway.app import Gateway
from gateway.dispatch import DispatchLimits
from mesh.http import serve
from mesh.identity import Identity
from mesh.messages.record import Hardware
from mesh.peer import Peer, PeerSettings
from mesh.transport.memory import MemoryNetwork, MemoryTransport
from node.backends.mock import MockBackend, MockSettings
from node.keeping import Keeper, KeepingLimits
from node.service import NodeService

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from mesh.service import InferenceService

SLOW = MockSettings(tokens_per_second=100, length=40)


class KeepingNode:
    """A node as the program puts it together, without its ports."""

    def __init__(self, settings: MockSettings, limits: KeepingLimits) -> None:
        self.backend = MockBackend("m", settings)
        self.keeper = Keeper(NodeService([self.backend]), limits=limits)
        self.generated = 0
        self.peer: Peer
        emit_word = self.backend._emit_word

        def count(job: Any) -> None:
            self.generated += 1
            emit_word(job)

        self.backend._emit_word = count  # type: ignore[method-assign]  # it counts what is made, whoever reads it

    @property
    def peer_id(self) -> str:
        return self.peer.peer_id


class Way:
    """One gateway: its peer, and the URL of its port."""

    def __init__(self, town: Town, peer: Peer, gateway: Gateway, url: str) -> None:
        self.town, self.peer, self.gateway, self.url = town, peer, gateway, url

    def kill(self) -> None:
        """The process is gone: its links break, and it says nothing more."""
        self.town.network.kill(self.peer.peer_id)

    @asynccontextmanager
    async def socket(self) -> AsyncIterator[Socket]:
        async with connect(f"ws://{self.url.removeprefix('http://')}/ws/me") as socket:
            client = Socket(socket)
            assert (await client.next())["type"] == "connection"
            yield client


class Socket:
    """A WebSocket client."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket

    async def say(self, **message: Any) -> None:
        await self._socket.send(json.dumps(message))

    async def next(self) -> dict[str, Any]:
        with trio.fail_after(20):
            return json.loads(await self._socket.recv())

    async def chunks(self, count: int | None = None) -> list[dict[str, Any]]:
        """The next chunks: so many, or all up to the end, which must be a good one."""
        found: list[dict[str, Any]] = []
        while len(found) != count:
            message = await self.next()
            if message["type"] == "inference_complete":
                assert count is None
                return [*found, message]
            assert message["type"] == "inference_chunk", message
            found.append(message)
        return found


class Town:
    """Nodes and gateways of one mesh."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.network = MemoryNetwork(latency=0.001)
        self._nursery = nursery
        self._addresses: list[str] = []

    def _peer(self, role: Any, service: InferenceService | None) -> Peer:
        settings = PeerSettings(
            identity=Identity.generate(),
            role=role,
            name=role,
            mesh="test",
            bootstrap=list(self._addresses),
            mdns=False,
            hardware=Hardware(),
            ports={},
        )
        return Peer(settings, MemoryTransport(settings.identity, self.network), service)

    async def node(self, settings: MockSettings = SLOW, **limits: Any) -> KeepingNode:
        node = KeepingNode(settings, KeepingLimits(**limits))
        node.peer = self._peer("node", node.keeper)
        await self._nursery.start(node.keeper.run)
        await self._nursery.start(node.backend.run)
        node.peer.announce([node.backend.entry], {"m": node.backend.load})
        await self._nursery.start(node.peer.run)
        self._addresses = self._addresses or list(node.peer.addresses)
        return node

    async def gateway(self, *nodes: KeepingNode, **limits: Any) -> Way:
        """One more gateway, that sees these nodes."""
        peer = self._peer("gateway", None)
        await self._nursery.start(peer.run)
        gateway = Gateway(peer.registry, limits=DispatchLimits(**limits))
        self._nursery.start_soon(gateway.run)
        port = await self._nursery.start(serve, gateway.router, "127.0.0.1", 0)
        way = Way(self, peer, gateway, f"http://127.0.0.1:{port}")
        with trio.fail_after(20):
            while len(peer.registry.nodes("m")) < len(nodes):  # noqa: ASYNC110 - links come from many places
                await trio.sleep(0.01)
        return way


def nothing() -> None:
    """Do it."""


class Stream:
    """What a client got of one SSE stream. `marker` is the id of the last event."""

    def __init__(self) -> None:
        self.status = 0
        self.text = ""
        self.texts: dict[int, str] = {}
        self.marker = ""
        self.ids: list[str] = []
        self.chunks: list[dict[str, Any]] = []
        self.done = False

    async def read(self, answer: httpx2.Response, *, chunks: int | None = None, then: Callable[[], None] = nothing) -> Stream:
        """All of it, or so many chunks; `then` is called before the connection ends."""
        self.status = answer.status_code
        if self.status != 200:
            self.text = (await answer.aread()).decode()
            return self
        with trio.CancelScope() as scope:
            async for line in answer.aiter_lines():
                if scope.cancel_called:
                    continue
                self._take(line)
                if chunks is not None and len(self.chunks) >= chunks:
                    then()
                    # Leaving the loop would leave its generators behind.
                    scope.cancel()
        return self

    def _take(self, line: str) -> None:
        if line.startswith("id: "):
            self.marker = line[4:]
            self.ids.append(line[4:])
        elif line == "data: [DONE]":
            self.done = True
        elif line.startswith("data: "):
            chunk = json.loads(line[6:])
            self.chunks.append(chunk)
            for choice in chunk.get("choices", []):
                said = choice["delta"].get("content") or "" if "delta" in choice else choice["text"]
                self.texts[choice["index"]] = self.texts.get(choice["index"], "") + said
            self.text = self.texts.get(0, "")


class Client:
    """An HTTP client of the gateways."""

    def __init__(self, http: httpx2.AsyncClient) -> None:
        self._http = http

    async def start(self, way: Way, *, chunks: int | None = None, then: Callable[[], None] = nothing, **options: Any) -> Stream:
        """Begin a stream, and read so many chunks of it, or all."""
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "seed": 7, "stream": True, **options}
        async with self._http.stream("POST", f"{way.url}/v1/chat/completions", json=body) as answer:
            return await Stream().read(answer, chunks=chunks, then=then)

    async def resume(self, way: Way, marker: str) -> Stream:
        async with self._http.stream("GET", f"{way.url}/v1/streams", headers={"last-event-id": marker}) as answer:
            return await Stream().read(answer)


@pytest.fixture
def town(nursery: trio.Nursery) -> Town:
    return Town(nursery)


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as http:
        yield Client(http)


@pytest.fixture
def until() -> Callable[..., Any]:
    async def wait(condition: Callable[[], bool]) -> None:
        with trio.fail_after(20):
            while not condition():  # noqa: ASYNC110 - the conditions are of many kinds
                await trio.sleep(0.01)

    return wait
