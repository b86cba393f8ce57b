"""Whom a peer dials of those it hears of."""

from __future__ import annotations

import trio

from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.messages.link import ModelLoad
from tests.mesh.town import MODEL, Heard, hearing, served, town, until


async def test_a_gateway_dials_the_node_that_it_hears_of(autojump_clock):
    async with town() as here:
        node = await here.add("node")
        gateway = await here.add("gateway", discovery=hearing(Heard(node.peer_id, node.addresses)))
        await until(lambda: served(gateway) == {node.peer_id}, limit=2)


async def test_a_gateway_dials_gateways_that_it_hears_of_for_they_may_serve_foreign_services(autojump_clock):
    async with town() as here:
        other = await here.add("gateway")
        gateway = await here.add("gateway", discovery=hearing(Heard(other.peer_id, other.addresses, role="gateway")))
        await until(lambda: other.peer_id in gateway.links, limit=5)
        assert gateway.registry.nodes() == []
        other.announce([MODEL], {"m": ModelLoad("ready")})
        await until(lambda: served(gateway) == {other.peer_id}, limit=5)


async def test_a_node_dials_nobody_that_it_hears_of(autojump_clock):
    async with town() as here:
        other = await here.add("node")
        gateway = await here.add("gateway")
        heard = hearing(Heard(other.peer_id, other.addresses), Heard(gateway.peer_id, gateway.addresses, role="gateway"))
        node = await here.add("node", discovery=heard)
        await trio.sleep(20)
        assert node.links == {}


async def test_sightings_of_ourselves_of_other_meshes_and_of_nonsense_are_harmless(autojump_clock):
    async with town() as here:
        identity, stranger = Identity.generate(), Identity.generate()
        heard = hearing(
            Heard(identity.peer_id, ["/memory/1/p2p/" + identity.peer_id]),
            Heard(stranger.peer_id, ["/memory/2/p2p/" + stranger.peer_id], mesh="elsewhere"),
            Heard("nonsense", ["nonsense", "/ip4/1.2.3.4"]),
            Heard(stranger.peer_id, ["/memory/1/p2p/" + identity.peer_id]),
        )
        gateway = await here.add("gateway", identity=identity, discovery=heard)
        await trio.sleep(20)
        assert gateway.links == {}
        assert any("elsewhere" in line for line in gateway.trail)


async def test_ways_of_hearing_that_fail_do_not_end_the_peer(autojump_clock, caplog):
    class Deaf:
        async def run(self, found, *, task_status=trio.TASK_STATUS_IGNORED):
            raise Unavailable("no interface takes multicast")

    class Broken:
        def __init__(self, _peer):
            raise RuntimeError("zeroconf fell over")

    async with town() as here:
        gateway = await here.add("gateway", discovery={"mdns": lambda _: Deaf(), "other": Broken})
        await trio.sleep(15)
        assert any("no interface" in line for line in gateway.trail)
        assert any("it broke" in line for line in gateway.trail)
        assert any("mDNS did not start: no interface" in sentence for sentence in gateway.trail.explain())
        assert "zeroconf fell over" in caplog.text
