"""The table on real sockets: publish, look up, who is let in, what a stranger can take."""

from __future__ import annotations

import trio
from libp2p.exceptions import BaseLibp2pError

from mesh.record import open_record
from mesh.transport.libp2p import PROTOCOL
from mesh.transport.libp2p.connection import Connection
from mesh.transport.libp2p.kad import calls, kademlia, stores
from mesh.transport.libp2p.kad.records import model_key, protocol_of, record_key, value_of
from mesh.transport.libp2p.tamed import carrier_of
from tests.mesh.transport.libp2p.kad.conftest import MESH, record_of


async def ended(stream) -> bool:
    """The other side ends the stream without a word."""
    try:
        return await stream.read(1) == b""
    except BaseLibp2pError:
        return True


async def refused(connection, protocol: str) -> bool:
    try:
        return await ended(await connection.open(protocol))
    except BaseLibp2pError:
        return True


async def test_who_knows_one_finds_all(fleet, until):
    members = await fleet.many(7)
    # The first one dialled those who asked it.
    await until(lambda: len(members[0].table.peers) == 6)
    newcomer = await fleet.start()
    newcomer.meet(members[3])
    assert await newcomer.table.greet(members[3].peer_id)
    await newcomer.table.refresh()
    assert set(newcomer.table.peers) == {member.peer_id for member in members}


async def test_a_peer_that_knows_only_one_other_finds_a_provider_and_its_record(fleet, until):
    members = await fleet.many(6)
    await until(lambda: len(members[0].table.peers) == 5)
    provider = members[2]
    await provider.table.refresh()
    await provider.table.publish(record_of(provider.identity))
    await provider.table.provide("llama")
    asker = await fleet.start(serves=False)
    asker.meet(members[5])
    await asker.table.greet(members[5].peer_id)
    assert await asker.table.providers("llama") == [provider.peer_id]
    assert await asker.table.providers("unknown") == []
    # Its owner is gone: others still hold the record.
    provider.scope.cancel()
    found = await asker.table.record(provider.peer_id)
    assert found is not None
    assert open_record(found).peer_id == provider.peer_id


async def test_answers_come_from_the_network_not_from_what_is_held(fleet, until):
    """The stock table answers from its own store first: the first answer that it ever saw, for two days."""
    members = await fleet.many(4)
    await until(lambda: len(members[0].table.peers) == 3)
    _, second, third, asker = members
    for member in members:
        await member.table.refresh()
    await second.table.provide("llama")
    assert await asker.table.providers("llama") == [second.peer_id]
    await third.table.provide("llama")
    assert set(await asker.table.providers("llama")) == {second.peer_id, third.peer_id}
    await second.table.publish(record_of(second.identity, sequence=1))
    assert (await asker.table.record(second.peer_id)) == record_of(second.identity, sequence=1)
    await second.table.publish(record_of(second.identity, sequence=2))
    assert (await asker.table.record(second.peer_id)) == record_of(second.identity, sequence=2)


async def test_only_who_can_be_dialled_and_serves_gets_into_a_table(fleet, until):
    server, client = await fleet.start(), await fleet.start(serves=False)
    client.meet(server)
    assert await client.table.greet(server.peer_id)
    await until(lambda: not server.table._strangers and server.table._host.suspected(client.peer_id))
    assert server.table.peers == []


async def test_peers_of_another_mesh_do_not_understand_each_other(fleet):
    ours, theirs = await fleet.start(), await fleet.start(mesh="other")
    ours.meet(theirs)
    assert not await ours.table.greet(theirs.peer_id)
    assert ours.table.peers == theirs.table.peers == []


async def test_a_stranger_is_neither_answered_nor_asked(fleet):
    trusted: set[str] = set()
    guarded = await fleet.start(admits=lambda peer_id, _address: peer_id in trusted)
    stranger = await fleet.start()
    stranger.meet(guarded)
    assert not await stranger.table.greet(guarded.peer_id)
    guarded.meet(stranger)
    assert not await guarded.table.greet(stranger.peer_id)
    assert stranger.table.peers == guarded.table.peers == []
    trusted.add(stranger.peer_id)
    stranger.meet(guarded)
    assert await stranger.table.greet(guarded.peer_id)


async def test_forged_and_old_values_are_not_kept(fleet):
    keeper, giver, victim = await fleet.start(), await fleet.start(), await fleet.start()
    giver.meet(keeper)
    await giver.table.greet(keeper.peer_id)
    store = keeper.table._dht.value_store.store

    async def give(key: str, value: bytes) -> bool:
        return await giver.table._dht.value_store._store_at_peer(keeper.table._host.get_id(), key.encode(), value)

    key = record_key(victim.peer_id)
    good = record_of(victim.identity, sequence=5)
    unsigned = type(good)(good.payload, bytes(64))
    assert not await give(key, value_of(unsigned))
    assert not await give(key, value_of(record_of(giver.identity)))
    assert not await give(key, b"rubbish")
    assert not await give("/pk/abc", b"rubbish")
    assert not await give("plain", value_of(good))
    assert not await give(key, value_of(record_of(victim.identity, mesh="other")))
    assert store == {}
    # Anybody may bring what its owner signed: that is how it spreads.
    assert await give(key, value_of(good))
    del giver.table._dht.value_store
    giver.table._dht.value_store = stores.Values(giver.table._host, giver.table._host.get_id())
    assert not await give(key, value_of(record_of(victim.identity, sequence=4)))
    store.clear()
    assert not await give(key, value_of(record_of(victim.identity, sequence=4)))
    assert await give(key, value_of(record_of(victim.identity, sequence=6)))


async def test_nobody_provides_in_anothers_name(fleet):
    keeper, liar, victim = await fleet.start(), await fleet.start(), await fleet.start()
    liar.meet(keeper)
    await liar.table.greet(keeper.peer_id)
    liar.table._dht.provider_store.local_peer_id = victim.table._host.get_id()
    await liar.table.provide("llama")
    assert keeper.table._dht.provider_store.get_providers(bytes.fromhex(model_key(MESH, "llama"))) == []


async def test_streams_of_one_peer_are_bounded_and_do_not_last(fleet, monkeypatch, until):
    monkeypatch.setattr(kademlia, "SERVE_LIMIT", 1.0)
    server, hog, other = await fleet.start(), await fleet.start(), await fleet.start()
    connection = await hog.transport.connect(server.transport.addresses)
    silent = [await connection.open(protocol_of(MESH)) for _ in range(kademlia.MAX_SERVED_PER_PEER)]
    await until(lambda: server.table._served[hog.peer_id] == kademlia.MAX_SERVED_PER_PEER)
    assert await refused(connection, protocol_of(MESH))
    # Others are answered meanwhile, and the silent ones do not stay.
    other.meet(server)
    assert await other.table.greet(server.peer_id)
    await until(lambda: server.table._served[hog.peer_id] == 0)
    hog.meet(server)
    assert await hog.table.greet(server.peer_id)
    assert len(silent) == kademlia.MAX_SERVED_PER_PEER
    connection.abort()


async def test_a_question_that_never_ends_is_cut(fleet, until):
    server, hog = await fleet.start(), await fleet.start()
    connection = await hog.transport.connect(server.transport.addresses)
    stream = await connection.open(protocol_of(MESH))
    # A length of 3 MiB, which the stock table would wait for.
    await stream.write(b"\x80\x80\xc0\x01")
    await stream.write(bytes(kademlia.MAX_QUESTION))
    assert await ended(stream)
    await until(lambda: server.table._served[hog.peer_id] == 0)
    connection.abort()


async def test_a_peer_that_hangs_is_left_alone_after_one_question(fleet, monkeypatch):
    monkeypatch.setattr("mesh.transport.libp2p.kad.host.ANSWER_LIMIT", 0.3)
    asker, hung = await fleet.start(), await fleet.start()

    async def hang(stream) -> None:
        await trio.sleep_forever()

    hung.transport.serve(protocol_of(MESH), hang)
    asker.meet(hung)
    assert not await asker.table.greet(hung.peer_id)
    assert asker.table._host.suspected(hung.peer_id)
    with trio.fail_after(1):
        assert not await asker.table.greet(hung.peer_id)
    asker.meet(hung)
    assert not asker.table._host.suspected(hung.peer_id)


async def test_the_table_works_while_peers_die(fleet, until):
    members = await fleet.many(5)
    await until(lambda: len(members[0].table.peers) == 4)
    for member in members[1:]:
        await member.table.refresh()
    members[0].scope.cancel()
    await members[4].table.publish(record_of(members[4].identity))
    await members[4].table.provide("llama")
    asker = await fleet.start()
    asker.meet(members[1])
    await asker.table.greet(members[1].peer_id)
    await asker.table.refresh()
    assert members[0].peer_id not in asker.table.peers
    assert await asker.table.providers("llama") == [members[4].peer_id]


async def test_a_connection_for_questions_takes_no_link(fleet):
    asker, server = await fleet.start(), await fleet.start()
    asker.meet(server)
    assert await asker.table.greet(server.peer_id)
    host = server.transport._host
    (theirs,) = host.swarm.connections[asker.table._host.get_id()]
    assert await refused(Connection(host, theirs, carrier_of(theirs.muxed_conn)), PROTOCOL)
    # Questions go on over it.
    assert await asker.table.greet(server.peer_id)


async def test_quiet_connections_are_closed_and_the_number_is_bounded(fleet, monkeypatch, until):
    monkeypatch.setattr(calls, "MAX_CALLS", 2)
    monkeypatch.setattr(calls, "QUIET", 0.2)
    monkeypatch.setattr(calls, "SWEEP", 0.1)
    asker, *servers = [await fleet.start() for _ in range(4)]
    for server in servers:
        asker.meet(server)
        assert await asker.table.greet(server.peer_id)
        assert len(asker.table._host.calls) <= 2
    await until(lambda: len(asker.table._host.calls) == 0)
