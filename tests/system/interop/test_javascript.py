"""A peer of another libp2p program (js-libp2p) dials, identifies, pings and finds a node."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.version import __version__

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

PROTOCOLS = {"/ipfs/id/1.0.0", "/ipfs/ping/1.0.0", "/infermesh/link/1.0.0"}
PINGS = 60


def bare(addresses: list[str]) -> set[str]:
    """Without the peer id at their ends."""
    return {address.rpartition("/p2p/")[0] for address in addresses}


async def test_it_identifies_and_pings_a_busy_node(slow_node: Any, bystander: Any, js_peer: Any) -> None:
    addresses = slow_node.ready["addresses"]
    assert ["/ws/" in address for address in addresses] == [False, True]
    async with bystander(slow_node) as watch:
        for address in addresses:
            events = await js_peer(address, str(PINGS))
            await watch.goes_on()
            (identified,) = events["identified"]
            assert identified["peer_id"] == slow_node.ready["peer_id"]
            assert identified["agent"] == f"infermesh/{__version__}"
            assert set(identified["protocols"]) >= PROTOCOLS
            assert set(identified["addresses"]) == bare(addresses)
            assert identified["observed"].startswith("/ip4/127.0.0.1/tcp/")
            assert identified["signed"]
            (hello,) = events["link"]
            assert hello["length"] == hello["announced"], "a length, and as many bytes"
            assert len(events["ping"]) == PINGS
            assert events["done"] == [{"event": "done", "open": True, "connections": 1}]


async def test_it_finds_a_node_by_mdns(fleet: Any, js_peer: Any) -> None:
    node = await fleet.mock()
    events = await js_peer("find", node.ready["peer_id"])
    assert set(events["found"][0]["addresses"]) == bare(node.ready["addresses"])
    assert events["identified"][0]["peer_id"] == node.ready["peer_id"]
    assert len(events["ping"]) == 1
