"""Peers as programs put them together, on real sockets."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import trio

from mesh.identity import Identity
from mesh.peer import Peer, PeerSettings
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport

if TYPE_CHECKING:
    from collections.abc import Callable


def free_port(family: socket.AddressFamily, host: str) -> int:
    with socket.socket(family) as listening:
        listening.bind((host, 0))
        return int(listening.getsockname()[1])


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event
            await trio.sleep(0.01)


@pytest.mark.parametrize(
    ("family", "host", "kind", "direct"), [(socket.AF_INET, "127.0.0.1", "ip4", False), (socket.AF_INET6, "::1", "ip6", True)]
)
async def test_two_that_dial_each_other_at_once_keep_one_link(family, host, kind, direct):
    identities = [Identity.generate() for _ in range(2)]
    listens = [f"/{kind}/{host}/tcp/{free_port(family, host)}" for _ in range(2)]

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
        carrier = DirectTransport(identities[own], [listens[own]]) if direct else None
        return Peer(settings, Libp2pTransport(identities[own], [listens[own]]), direct=carrier)

    peers = [peer(0), peer(1)]

    def settled() -> bool:
        wanted = "direct" if direct else "libp2p"
        return all([link.carrier for link in one.links.values()] == [wanted] and len(one.every_link) == 1 for one in peers)

    async with trio.open_nursery() as nursery:
        for one in peers:
            nursery.start_soon(one.run)
        await until(settled)
        links = [next(iter(one.links.values())) for one in peers]
        assert [link.dialled for link in links] in ([True, False], [False, True]), "the same connection, seen from its two ends"
        await trio.sleep(0.5)
        assert settled()
        assert [next(iter(one.links.values())) for one in peers] == links
        nursery.cancel_scope.cancel()
