"""Direct transports on loopback."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from mesh.identity import Identity
from mesh.transport.direct import DirectTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mesh.transport.base import Channel

SEEN_AT = "/ip4/127.0.0.1/tcp/1"


@dataclass
class Server:
    """A running listener. `arrived` are the channels that it took; each lives until the test ends or it is closed."""

    identity: Identity
    transport: DirectTransport
    arrived: list[Channel] = field(default_factory=list)

    async def first(self) -> Channel:
        with trio.fail_after(10):
            while not self.arrived:  # noqa: ASYNC110 - a test's hang guard around it
                await trio.sleep(0.005)
        return self.arrived[0]


@dataclass
class Ground:
    nursery: trio.Nursery

    async def serve(self, listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",), handler: Any = None) -> Server:
        identity = Identity.generate()
        server = Server(identity, DirectTransport(identity, list(listen)))

        async def keep(channel: Channel) -> None:
            server.arrived.append(channel)
            await trio.sleep_forever()

        await self.nursery.start(server.transport.run, handler or keep)
        return server

    async def pair(self) -> tuple[Channel, Channel]:
        """Both ends of a channel: the dialling one first."""
        server, client = await self.serve(), Identity.generate()
        offer = server.transport.offer(client.peer_id)
        near = await DirectTransport(client, []).dial(server.identity.peer_id, offer, seen_at=SEEN_AT)
        return near, await server.first()


@pytest.fixture
async def ground() -> AsyncIterator[Ground]:
    async with trio.open_nursery() as nursery:
        yield Ground(nursery)
        nursery.cancel_scope.cancel()


@pytest.fixture
def seen_at() -> str:
    return SEEN_AT


@pytest.fixture
def relay() -> Callable[[int], Any]:
    """`async with relay(port) as (address, seen)`: bytes pass unchanged, and `seen` collects what the dialler sent."""

    @asynccontextmanager
    async def between(port: int) -> AsyncIterator[tuple[str, bytearray]]:
        seen = bytearray()

        async def pump(source: trio.SocketStream, sink: trio.SocketStream, note: Callable[[bytes], Any]) -> None:
            async for data in source:
                note(bytes(data))
                await sink.send_all(data)
            await sink.send_eof()

        async def accept(stream: trio.SocketStream) -> None:
            async with await trio.open_tcp_stream("127.0.0.1", port) as onward, trio.open_nursery() as nursery:
                nursery.start_soon(pump, stream, onward, seen.extend)
                nursery.start_soon(pump, onward, stream, len)

        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(_serve, accept)
            yield f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}", seen
            nursery.cancel_scope.cancel()

    return between


async def _serve(accept: Callable[[trio.SocketStream], Awaitable[None]], *, task_status: trio.TaskStatus[Any]) -> None:
    await trio.serve_tcp(accept, 0, host="127.0.0.1", task_status=task_status)
