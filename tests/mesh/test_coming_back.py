"""What happens when a peer dies, leaves, or comes back."""

from __future__ import annotations

import pytest
import trio

from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.record import RECORD_TTL
from tests.mesh.town import DONE, Service, ask, served, town, until


async def test_a_killed_node_is_gone_within_three_seconds_and_so_are_its_requests(autojump_clock):
    async with town() as here:
        service = Service()
        service.gate = trio.Event()
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap, service=service)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        events = []
        gateway.registry.subscribe(lambda event: events.append((event.kind, event.peer.peer_id)))

        async def lost():
            with pytest.raises(Unavailable) as caught:
                await gateway.links[node.peer_id].infer(ask(), lambda _: None)
            assert caught.value.code == "link_lost"

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lost)
            await trio.sleep(1)
            here.kill(node)
        assert await until(lambda: not served(gateway)) <= 3
        assert ("left", node.peer_id) in events
        assert gateway.registry.catalog() == []


async def test_a_hung_node_is_gone_after_three_seconds_and_comes_back(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        await trio.sleep(7)
        here.network.hang(node.peer_id)
        assert await until(lambda: not served(gateway)) <= 3.1
        assert gateway.registry.peers[node.peer_id].link is None
        await trio.sleep(10)
        here.network.resume(node.peer_id)
        await until(lambda: served(gateway) and bootstrap.peer_id in node.links, limit=40)


async def test_a_dead_node_is_forgotten_when_its_record_expires(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        gateways = [await here.add("gateway", bootstrap) for _ in range(3)]
        await until(lambda: all(served(gateway) for gateway in gateways))
        here.kill(node)
        await trio.sleep(RECORD_TTL - 10)
        late = await here.add("gateway", bootstrap)
        gateways.append(late)
        # Gateways that know it in turn tell others; the ages keep that from going on for ever.
        await trio.sleep(RECORD_TTL * 0.6)
        assert all(node.peer_id not in peer.registry.peers for peer in [*gateways, bootstrap])
        assert any("could not be reached" in sentence or node.peer_id in sentence for sentence in late.trail)


async def test_leaving_is_known_at_once_and_lets_requests_finish(autojump_clock):
    async with town() as here:
        service = Service()
        service.gate = trio.Event()
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap, service=service)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        link, events = gateway.links[node.peer_id], []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.infer, ask(), events.append)
            await trio.sleep(1)
            started = trio.current_time()
            await node.leave()
            assert await until(lambda: not served(gateway)) <= 0.2
            assert trio.current_time() - started < 1
            with pytest.raises(Unavailable):
                await link.infer(ask(), events.append)
            await trio.sleep(60)
            assert served(gateway) == set()
            assert node.peer_id not in gateway.registry.peers
            service.gate.set()
        assert events == [DONE]


async def test_close_ends_every_link_after_its_goodbye_was_read(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        await node.close("done for today")
        here.scopes[node.instance].cancel()
        assert node.links == {}
        await until(lambda: node.peer_id not in bootstrap.registry.peers and node.peer_id not in gateway.registry.peers)


async def test_a_peer_that_left_takes_no_links(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        await bootstrap.leave()
        node = await here.add("node", bootstrap)
        assert node.links == {}
        assert any("leaving" in line for line in node.trail)


async def test_a_restarted_bootstrap_is_dialled_again(autojump_clock):
    async with town() as here:
        identity = Identity.generate()
        bootstrap = await here.add("bootstrap", identity=identity, transport={"number": 9})
        node = await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        here.kill(bootstrap)
        await trio.sleep(200)
        assert served(gateway) == {node.peer_id}, "what runs needs no bootstrap"
        again = await here.add("bootstrap", identity=identity, transport={"number": 9})
        await until(lambda: set(again.links) == {node.peer_id, gateway.peer_id}, limit=31)
        newcomer = await here.add("gateway", again)
        await until(lambda: served(newcomer) == {node.peer_id}, limit=3)


async def test_a_restarted_node_serves_again_from_another_address(autojump_clock):
    async with town() as here:
        identity = Identity.generate()
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap, identity=identity)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        here.kill(node)
        await until(lambda: not served(gateway))
        await trio.sleep(20)
        await here.add("node", bootstrap, identity=identity)
        await until(lambda: served(gateway) == {identity.peer_id}, limit=3)


async def test_a_partition_heals(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        here.network.partition(gateway.peer_id, node.peer_id)
        assert await until(lambda: not served(gateway)) <= 3.1
        assert bootstrap.peer_id in gateway.links
        await trio.sleep(60)
        here.network.heal(gateway.peer_id, node.peer_id)
        await until(lambda: served(gateway), limit=40)


async def test_two_processes_with_one_identity_are_named_and_the_newer_stays(autojump_clock, caplog):
    async with town() as here:
        identity = Identity.generate()
        bootstrap = await here.add("bootstrap")
        older = await here.add("node", bootstrap, identity=identity)
        newer = await here.add("node", bootstrap, identity=identity)
        await until(lambda: bootstrap.links[identity.peer_id].hello.instance == newer.instance, limit=2)
        await until(lambda: bootstrap.peer_id not in older.links, limit=5)
        assert "--state-dir" in caplog.text
        assert identity.peer_id in caplog.text


@pytest.mark.parametrize("swapped", [False, True])
async def test_two_that_dial_each_other_keep_one_link(autojump_clock, swapped):
    async with town(latency=0.02) as here:
        identities = sorted((Identity.generate(), Identity.generate()), key=lambda one: one.peer_id, reverse=swapped)
        first, second = (f"/memory/{n}/p2p/{one.peer_id}" for n, one in zip((51, 52), identities, strict=True))
        one = await here.add("bootstrap", second, identity=identities[0], transport={"number": 51}, ready=False)
        two = await here.add("bootstrap", first, identity=identities[1], transport={"number": 52}, ready=False)
        await until(lambda: one.links and two.links, limit=3)
        await trio.sleep(60)
        assert one.links[two.peer_id].dialled == (one.peer_id < two.peer_id)
        assert two.links[one.peer_id].dialled == (two.peer_id < one.peer_id)
        assert len([channel for channel in here.transports[one.instance]._channels if not channel.closed]) == 1
        assert all("duplicate" not in line for line in (*one.trail, *two.trail))
