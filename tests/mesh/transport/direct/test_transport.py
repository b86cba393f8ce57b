"""Who gets a direct channel, and who does not."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest
import trio

from mesh.errors import Misconfigured, Unavailable
from mesh.identity import Identity
from mesh.transport.direct import DirectTransport, tickets, transport
from mesh.transport.direct.certificate import client_context


def port_of(address):
    return int(address.rpartition("/")[2])


@pytest.fixture
def client():
    return Identity.generate()


@pytest.fixture
def dial(seen_at, client):
    async def dial(server, offer, *, identity=client):
        return await DirectTransport(identity, []).dial(server.identity.peer_id, offer, seen_at=seen_at)

    return dial


async def test_both_ends_know_each_other(ground, dial, client):
    server = await ground.serve()
    near = await dial(server, server.transport.offer(client.peer_id))
    far = await server.first()
    assert (near.peer_id, far.peer_id) == (server.identity.peer_id, client.peer_id)
    assert near.carrier == far.carrier == "direct"
    assert near.remote_address == server.transport.addresses[0]
    assert far.remote_address.startswith("/ip4/127.0.0.1/tcp/")
    await near.send_all(b"there")
    await far.send_all(b"back")
    assert (await far.receive_some(), await near.receive_some()) == (b"there", b"back")
    near.abort()


@pytest.mark.parametrize("waste", ["used", "unknown", "expired"])
async def test_a_bad_ticket_is_refused(ground, dial, client, waste, monkeypatch):
    server = await ground.serve()
    if waste == "expired":
        monkeypatch.setattr(tickets, "TICKET_LIFE", 0.0)
    offer = server.transport.offer(client.peer_id)
    if waste == "used":
        near = await dial(server, offer)
        await server.first()
        near.abort()
    elif waste == "unknown":
        offer = msgspec.structs.replace(offer, ticket=bytes(32))
    before = list(server.arrived)
    with pytest.raises(Unavailable, match="it refused the ticket") as raised:
        await dial(server, offer)
    assert raised.value.code == "no_direct"
    assert server.arrived == before


async def test_a_stolen_ticket_opens_nothing_and_is_spent(ground, dial, client):
    server = await ground.serve()
    offer = server.transport.offer(client.peer_id)
    with pytest.raises(Unavailable, match="it refused the ticket"):
        await dial(server, offer, identity=Identity.generate())
    with pytest.raises(Unavailable, match="it refused the ticket"):
        await dial(server, offer)
    assert server.arrived == []


async def test_a_ticket_of_one_listener_is_nothing_to_another(ground, dial, client):
    one, other = await ground.serve(), await ground.serve()
    offer = msgspec.structs.replace(one.transport.offer(client.peer_id), ticket=other.transport.offer(client.peer_id).ticket)
    with pytest.raises(Unavailable, match="it refused the ticket"):
        await dial(one, offer)


async def test_a_man_in_the_middle_with_another_certificate_hears_nothing(ground, dial, client):
    server = await ground.serve()
    heard = []

    async def listen(stream):
        tls = trio.SSLStream(stream, middle.transport._certificate.context, server_side=True, https_compatible=True)
        await tls.do_handshake()
        heard.append(await tls.receive_some())

    middle = await ground.serve()
    (listener,) = await ground.nursery.start(partial(trio.serve_tcp, listen, 0, host="127.0.0.1"))
    offer = server.transport.offer(client.peer_id)
    trap = f"/ip4/127.0.0.1/tcp/{listener.socket.getsockname()[1]}"
    with pytest.raises(Unavailable, match="another certificate"):
        await dial(server, msgspec.structs.replace(offer, addresses=[trap]))
    while not heard:  # noqa: ASYNC110 - pytest's time-out guards it
        await trio.sleep(0.005)
    assert heard == [b""]
    near = await dial(server, offer)
    await server.first()
    near.abort()


async def test_a_man_in_the_middle_who_only_passes_bytes_on_reads_nothing(ground, dial, client, relay):
    server = await ground.serve()
    offer = server.transport.offer(client.peer_id)
    async with relay(port_of(offer.addresses[0])) as (address, seen):
        near = await dial(server, msgspec.structs.replace(offer, addresses=[address]))
        await near.send_all(b"a secret")
        assert await (await server.first()).receive_some() == b"a secret"
        near.abort()
    assert seen
    assert b"a secret" not in seen
    assert offer.ticket not in seen


async def test_the_next_address_is_tried(ground, dial, client):
    server, other = await ground.serve(), await ground.serve()
    closed = await trio.open_tcp_listeners(0, host="127.0.0.1")
    dead = f"/ip4/127.0.0.1/tcp/{closed[0].socket.getsockname()[1]}"
    await closed[0].aclose()
    offer = server.transport.offer(client.peer_id)
    addresses = ["nonsense", "/dns4/localhost/tcp/1", dead, other.transport.addresses[0], *offer.addresses]
    near = await dial(server, msgspec.structs.replace(offer, addresses=addresses))
    assert near.remote_address == offer.addresses[0]
    near.abort()


async def test_every_failure_is_named(ground, dial, client):
    server, other = await ground.serve(), await ground.serve()
    offer = msgspec.structs.replace(
        server.transport.offer(client.peer_id), addresses=["/ip4/127.0.0.1/tcp/1", *other.transport.addresses]
    )
    with pytest.raises(Unavailable, match=r"/tcp/1: .*refused.*; .*another certificate"):
        await dial(server, offer)
    with pytest.raises(Unavailable, match="none was offered"):
        await dial(server, msgspec.structs.replace(offer, addresses=[]))


async def test_only_so_many_addresses_are_tried(ground, dial, client):
    server = await ground.serve()
    offer = server.transport.offer(client.peer_id)
    many = ["/ip4/127.0.0.1/tcp/1"] * transport.MAX_ADDRESSES
    with pytest.raises(Unavailable):
        await dial(server, msgspec.structs.replace(offer, addresses=[*many, *offer.addresses]))
    near = await dial(server, msgspec.structs.replace(offer, addresses=[*many[1:], *offer.addresses]))
    near.abort()


async def test_a_listener_that_does_not_answer_costs_a_bounded_time(dial, ground, client, monkeypatch):
    server = await ground.serve()
    monkeypatch.setattr(transport, "CONNECT_LIMIT", 0.2)
    silent = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = f"/ip4/127.0.0.1/tcp/{silent[0].socket.getsockname()[1]}"
    offer = msgspec.structs.replace(server.transport.offer(client.peer_id), addresses=[address])
    with pytest.raises(Unavailable, match="did not answer in time"):
        await dial(server, offer)
    await silent[0].aclose()


async def test_this_machine_is_only_dialled_over_loopback_when_the_link_is(ground, client):
    server = await ground.serve()
    offer = server.transport.offer(client.peer_id)
    with pytest.raises(Unavailable, match="none was offered"):
        await DirectTransport(client, []).dial(server.identity.peer_id, offer, seen_at="/ip4/10.1.2.3/tcp/4001")


async def test_strangers_are_bounded_and_thrown_out(ground, dial, client, monkeypatch):
    monkeypatch.setattr(transport, "MAX_HANDSHAKES", 2)
    monkeypatch.setattr(transport, "HANDSHAKE_LIMIT", 0.5)
    server = await ground.serve()
    port = port_of(server.transport.addresses[0])
    silent = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
    crowd = await trio.open_tcp_stream("127.0.0.1", port)
    with trio.fail_after(10):
        assert await crowd.receive_some() == b"", "no place is free"
        for stream in silent:
            assert await stream.receive_some() == b"", "their time is over"
    (await dial(server, server.transport.offer(client.peer_id))).abort()
    for stream in (*silent, crowd):
        await stream.aclose()


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\xff\xff" + bytes(100), b""])
async def test_garbage_ends_its_own_connection(ground, dial, client, said):
    server = await ground.serve()
    stream = await trio.open_tcp_stream("127.0.0.1", port_of(server.transport.addresses[0]))
    if said:
        await stream.send_all(said)
    await stream.aclose()
    near = await dial(server, server.transport.offer(client.peer_id))
    await server.first()
    near.abort()


async def test_a_client_that_leaves_before_it_shows_a_ticket(ground, dial, client):
    server = await ground.serve()
    tcp = await trio.open_tcp_stream("127.0.0.1", port_of(server.transport.addresses[0]))
    tls = trio.SSLStream(tcp, client_context(), https_compatible=True)
    await tls.send_all(bytes(40))
    await tls.aclose()
    near = await dial(server, server.transport.offer(client.peer_id))
    await server.first()
    near.abort()


async def test_a_handler_that_fails_ends_its_channel_alone(ground, dial, client, caplog):
    async def broken(channel):
        assert await channel.receive_some() == b"go"
        raise ValueError("ours")

    server = await ground.serve(handler=broken)
    for _ in range(2):
        near = await dial(server, server.transport.offer(client.peer_id))
        await near.send_all(b"go")
        with pytest.raises(trio.BrokenResourceError):
            await near.receive_some()
        near.abort()
    assert "failed" in caplog.text


async def test_nothing_is_offered_before_and_after_running(client):
    server = DirectTransport(Identity.generate(), ["/ip4/127.0.0.1/tcp/0"])
    assert server.offer(client.peer_id).addresses == []
    async with trio.open_nursery() as nursery:
        await nursery.start(server.run, None)
        assert len(server.offer(client.peer_id).addresses) == 1
        nursery.cancel_scope.cancel()
    assert server.offer(client.peer_id).addresses == []


async def test_one_listener_per_host(ground):
    server = await ground.serve(("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/tcp/0/ws", "/ip4/127.0.0.2/tcp/0"))
    assert [address.split("/")[2] for address in server.transport.addresses] == ["127.0.0.1", "127.0.0.2"]
    assert all(port_of(address) for address in server.transport.addresses)


async def test_a_host_that_is_not_ours_is_named():
    server = DirectTransport(Identity.generate(), ["/ip4/192.0.2.1/tcp/4001"])
    with pytest.raises(Misconfigured, match="no such address"):
        await server.run(None)
