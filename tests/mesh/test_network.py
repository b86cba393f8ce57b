"""Peers as programs put them together, on real sockets."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import trio

from mesh.identity import Identity
from mesh.peer import Peer, PeerSettings
from mesh.transport.libp2p import Libp2pTransport

if TYPE_CHECKING:
    from collections.abc import Callable


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as listening:
        listening.bind(("::1", 0))
        return int(listening.getsockname()[1])


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.01)


async def test_two_that_dial_each_other_at_once_keep_one_link():
    identities = [Identity.generate() for _ in range(2)]
    listens = [f"/ip6/::1/tcp/{free_port()}" for _ in range(2)]

    def peer(own: int) -> Peer:
        other = 1 - own
        settings = PeerSettings(
            identity=identities[own],
            role="node",
            name=str(own),
            mesh="test",
            bootstrap=[f"{listens[other]}/p2p/{identities[other].peer_id}"],
            mdns=False,
        )
        return Peer(settings, Libp2pTransport(identities[own], [listens[own]]))

    peers = [peer(0), peer(1)]

    def settled() -> bool:
        """One link on each side: the same connection, seen from its two ends."""
        links = [link for one in peers for link in one.links.values()]
        alone = all(len(one.links) == len(one.every_link) == 1 for one in peers)
        return alone and sorted(link.dialled for link in links) == [False, True]

    async with trio.open_nursery() as nursery:
        for one in peers:
            nursery.start_soon(one.run)
        await until(settled)
        nursery.cancel_scope.cancel()
