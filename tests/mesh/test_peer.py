"""What peers say of themselves."""

from __future__ import annotations

import secrets

import pytest
import trio

from mesh.errors import Misconfigured
from mesh.identity import Identity
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry, NodeRecord
from mesh.record import RECORD_TTL
from tests.mesh.town import MODEL, served, town, until


async def test_a_change_of_state_is_known_at_once(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        await trio.sleep(0.35)
        changes = []
        gateway.registry.subscribe(lambda event: changes.append((event.kind, event.peer.models[0].state)))
        node.announce([MODEL], {"m": ModelLoad("failed")})
        await trio.sleep(0.05)
        assert changes == [("changed", "failed")]
        assert gateway.registry.catalog()[0].state == "failed"
        node.announce([MODEL], {"m": ModelLoad("failed", waiting=3)})
        await trio.sleep(0.05)
        assert gateway.links[node.peer_id].load["m"].waiting == 0
        await trio.sleep(1)
        assert gateway.links[node.peer_id].load["m"].waiting == 3
        node.announce([MODEL, ModelEntry(id="n", state="ready")], {"m": ModelLoad("ready")})
        await trio.sleep(0.05)
        assert [entry.id for entry in gateway.registry.catalog()] == ["m", "n"]


async def test_a_record_is_issued_again_while_its_peer_lives(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        await until(lambda: node.peer_id in bootstrap.registry.peers)
        before = bootstrap.registry.peers[node.peer_id].record.sequence
        await trio.sleep(RECORD_TTL * 3)
        assert bootstrap.registry.peers[node.peer_id].record.sequence >= before + 8


async def test_everybody_hears_of_new_addresses_soon_and_nobody_of_the_same_ones(autojump_clock, monkeypatch):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        await until(lambda: node.peer_id in bootstrap.registry.peers)

        def told() -> NodeRecord:
            return bootstrap.registry.peers[node.peer_id].record

        first = told()
        late = f"/ip4/10.1.2.3/tcp/4001/p2p/{node.peer_id}"
        before = node.addresses
        listening = type(node._transport)
        monkeypatch.setattr(listening, "addresses", property(lambda self: [*before, late] if self is node._transport else before))
        await until(lambda: told().addresses == [*before, late], limit=5)
        monkeypatch.undo()
        await until(lambda: told().addresses == before, limit=5)
        last = told().sequence
        await trio.sleep(10)
        assert told().sequence == last > first.sequence


async def test_a_clock_that_went_back_is_overcome(autojump_clock, monkeypatch):
    async with town() as here:
        identity = Identity.generate()
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap, identity=identity)
        gateway = await here.add("gateway", bootstrap)
        await until(lambda: served(gateway))
        here.kill(node)
        await trio.sleep(1)
        monkeypatch.setattr("mesh.own_record.time.time", lambda: 1_000.0)
        again = await here.add("node", bootstrap, identity=identity)
        again.announce([MODEL, ModelEntry(id="new", state="ready")], {})
        await until(lambda: [entry.id for entry in gateway.registry.catalog()] == ["m", "new"], limit=5)


async def test_more_models_than_fit_a_record_are_refused_and_the_peer_goes_on(autojump_clock):
    async with town() as here:
        bootstrap = await here.add("bootstrap")
        node = await here.add("node", bootstrap)
        many = [ModelEntry(id=secrets.token_hex(100)) for _ in range(100)]
        with pytest.raises(Misconfigured, match="fewer models"):
            node.announce(many, {})
        await trio.sleep(RECORD_TTL)
        assert [entry.id for entry in bootstrap.registry.peers[node.peer_id].record.models] == ["m"]
