"""Transports that run, and a stock py-libp2p host to play foreign and hostile peers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
import trio

from mesh.identity import Identity

from mesh.transport.libp2p import Libp2pTransport  # isort: skip - before any other import of libp2p
from libp2p import new_host
from libp2p.io.trio import TrioTCPStream
from libp2p.network.config import ConnectionConfig
from multiaddr import Multiaddr

if TYPE_CHECKING:
    from mesh.transport.base import Channel

HANG = 20.0
"""Seconds after which a test gives up. Nothing here is a measurement."""


@dataclass
class Peer:
    """A running transport whose inbound channels are echoed or, with `hold`, kept for the test."""

    transport: Libp2pTransport
    identity: Identity
    scope: trio.CancelScope
    inbound: list[Channel] = field(default_factory=list)
    errors: list[BaseException] = field(default_factory=list)
    hold: bool = False
    released: trio.Event = field(default_factory=trio.Event)

    async def handle(self, channel: Channel) -> None:
        self.inbound.append(channel)
        if self.hold:
            await self.released.wait()
            return
        while data := await channel.receive_some():
            await channel.send_all(data)

    async def arrived(self, count: int = 1) -> Channel:
        with trio.fail_after(HANG):
            while len(self.inbound) < count:  # noqa: ASYNC110 - simpler than an event per count
                await trio.sleep(0.005)
        return self.inbound[count - 1]

    @property
    def open_connections(self) -> int:
        return len(self.transport._carriers)


class Mesh:
    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    async def start(self, *listen: str, identity: Identity | None = None, handler=None, prepare=None, **options) -> Peer:
        identity = identity or Identity.generate()
        scope = trio.CancelScope()
        transport = Libp2pTransport(identity, listen or ["/ip4/127.0.0.1/tcp/0"], **options)
        if prepare is not None:
            prepare(transport)
        peer = Peer(transport, identity, scope)

        async def run(*, task_status):
            with scope:
                await transport.run(handler or peer.handle, task_status=task_status)

        await self._nursery.start(run)
        return peer


@pytest.fixture
async def mesh():
    with trio.fail_after(50):
        async with trio.open_nursery() as nursery:
            yield Mesh(nursery)
            nursery.cancel_scope.cancel()


@pytest.fixture
def until():
    async def wait(condition) -> None:
        with trio.fail_after(HANG):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await trio.sleep(0.01)

    return wait


@pytest.fixture
def echo():
    """Send bytes and read as many back."""

    async def exchange(channel: Channel, data: bytes = b"hello") -> None:
        received = b""
        with trio.fail_after(HANG):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(channel.send_all, data)
                while len(received) < len(data):
                    piece = await channel.receive_some()
                    assert piece, "the channel ended"
                    received += piece
        assert received == data

    return exchange


@pytest.fixture
def stock(monkeypatch):
    """`async with stock(**options) as host`: a py-libp2p host as it comes."""
    sockets: list[trio.SocketStream] = []
    take = TrioTCPStream.__init__

    def remember(self, stream):
        sockets.append(stream)
        take(self, stream)

    monkeypatch.setattr(TrioTCPStream, "__init__", remember)

    @asynccontextmanager
    async def run(**options):
        listen = [Multiaddr("/ip4/127.0.0.1/tcp/0")]
        config = ConnectionConfig(min_connections=0, low_watermark=0)
        host = new_host(listen_addrs=listen, connection_config=config, **options)
        try:
            async with host.run(listen_addrs=listen):
                yield host
                with trio.move_on_after(3):
                    await host.close()
        finally:
            # It leaves some of its sockets to the garbage collector.
            for stream in sockets:
                stream.socket.close()

    return run
