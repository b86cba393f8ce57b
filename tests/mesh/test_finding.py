"""Who links with whom, by way of bootstrap peers."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from mesh.errors import Misconfigured
from mesh.identity import Identity
from mesh.peer import Peer, PeerSettings
from mesh.transport.memory import MemoryNetwork, MemoryTransport
from tests.mesh.town import DONE, Service, ask, served, town, until


async def test_records_travel_by_way_of_a_bootstrap_and_requests_do_not(autojump_clock):
    async with town(latency=0.01) as here:
        service = Service()
        bootstrap = await here.add("bootstrap")
        one = await here.add("node", bootstrap, service=service)
        gateway = await here.add("gateway", bootstrap)
        two = await here.add("node", bootstrap, service=service)
        await until(lambda: served(gateway) == {one.peer_id, two.peer_id}, limit=2)
        assert set(gateway.links) == {bootstrap.peer_id, one.peer_id, two.peer_id}
        assert set(one.links) == {bootstrap.peer_id, gateway.peer_id}
        for node in (one, two):
            events: list[Any] = []
            await gateway.links[node.peer_id].infer(ask(), events.append)
            assert events == [DONE]
        assert service.answered == 2
        assert [entry.id for entry in gateway.registry.catalog()] == ["m"]


async def test_a_gateway_learns_of_nodes_behind_two_bootstraps(autojump_clock):
    async with town() as here:
        west = await here.add("bootstrap")
        east = await here.add("bootstrap", west)
        node = await here.add("node", west)
        gateway = await here.add("gateway", east)
        await until(lambda: served(gateway) == {node.peer_id}, limit=3)
        assert west.peer_id not in gateway.links


async def test_a_node_may_come_first_and_its_bootstrap_later(autojump_clock):
    async with town() as here:
        identity = Identity.generate()
        address = f"/memory/77/p2p/{identity.peer_id}"
        node = await here.add("node", address)
        assert node.links == {}
        assert "refused" in next(iter(node.trail))
        await trio.sleep(100)
        bootstrap = await here.add("bootstrap", identity=identity, transport={"number": 77})
        assert bootstrap.addresses == [address]
        await until(lambda: bootstrap.peer_id in node.links, limit=31)


async def test_a_mesh_of_fifty_through_one_bootstrap(autojump_clock):
    async with town(latency=0.005) as here:
        bootstrap = await here.add("bootstrap")
        gateways = [await here.add("gateway", bootstrap, ready=False) for _ in range(3)]
        nodes = {(await here.add("node", bootstrap, ready=False)).peer_id for _ in range(47)}
        await until(lambda: all(served(gateway) == nodes for gateway in gateways), limit=20)
        assert len(bootstrap.links) == 50
        assert all(len(gateway.links) == 48 for gateway in gateways)


@pytest.mark.parametrize("address", ["", "127.0.0.1:4001", "/ip4/127.0.0.1/tcp/4001", "/ip4/127.0.0.1/tcp/4001/p2p/me", "/p2p/x"])
async def test_a_bootstrap_address_that_is_none_is_named(autojump_clock, address):
    identity = Identity.generate()
    settings = PeerSettings(identity=identity, role="node", name="n", bootstrap=[address])
    with pytest.raises(Misconfigured, match="--bootstrap"):
        Peer(settings, MemoryTransport(identity, MemoryNetwork()))


async def test_a_peer_that_is_its_own_bootstrap_gives_that_up(autojump_clock):
    async with town() as here:
        identity = Identity.generate()
        peer = await here.add("bootstrap", f"/memory/5/p2p/{identity.peer_id}", identity=identity, transport={"number": 5})
        await trio.sleep(20)
        assert peer.links == {}


async def test_peers_of_another_mesh_refuse_each_other(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap", mesh="one")
        node = await here.add("node", bootstrap, mesh="two")
        await trio.sleep(11)
        assert node.links == {}
        assert bootstrap.links == {}
        assert any("'one'" in line and "'two'" in line for line in node.trail)
        assert any("--mesh" in sentence for sentence in node.trail.explain())


async def test_an_open_mesh_refuses_public_addresses(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        far = await here.add("node", bootstrap, transport={"seen_as": "/ip4/8.8.8.8/tcp/4001"})
        near = await here.add("node", bootstrap, transport={"seen_as": "/ip4/192.168.1.5/tcp/4001"})
        await trio.sleep(5)
        assert set(bootstrap.links) == {near.peer_id}
        assert any("this mesh is open" in line for line in far.trail)
        public = await here.add("bootstrap", transport={"seen_as": "8.8.8.8:4001"})
        node = await here.add("node", public)
        assert node.links == {}
        assert any("public address" in sentence for sentence in node.trail.explain())
