"""A dial tries every address of a peer, and says what was wrong with each."""

from __future__ import annotations

import socket

import pytest
import trio
import trio.lowlevel

from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.transport.libp2p import Libp2pTransport, dialling

LOCAL = "/ip4/127.0.0.1/tcp/0"


class Names:
    """`both.test` has an address of each family; only the IPv6 one answers."""

    async def getaddrinfo(self, host, port, family=0, type=0, proto=0, flags=0):  # noqa: A002 - trio's name
        both = [(socket.AF_INET, ("127.0.0.9", port)), (socket.AF_INET6, ("::1", port, 0, 0))]
        assert host == b"both.test"
        return [(one, socket.SOCK_STREAM, 6, "", target) for one, target in both if family in (0, one)]

    async def getnameinfo(self, sockaddr, flags):
        raise AssertionError("nobody asks for the name of an address")


@pytest.fixture
async def names():
    before = trio.socket.set_custom_hostname_resolver(Names())
    yield
    trio.socket.set_custom_hostname_resolver(before)


async def test_names_lead_to_addresses_of_their_family(mesh, echo, names):
    alice, bob = await mesh.start("/ip6/::1/tcp/0"), await mesh.start()
    rest = alice.transport.addresses[0].removeprefix("/ip6/::1")
    for kind in ("dns", "dns6"):
        await echo(await bob.transport.dial([f"/{kind}/both.test{rest}"]))
    with pytest.raises(Unavailable, match=r"/dns4/both\.test/.*: connection refused"):
        await bob.transport.dial([f"/dns4/both.test{rest}"])


async def test_an_ipv6_address_is_dialled_beside_an_ipv4_one(mesh, echo, closed_port):
    alice, bob = await mesh.start("/ip6/::1/tcp/0"), await mesh.start()
    dead = f"/ip4/127.0.0.1/tcp/{closed_port}/p2p/{alice.identity.peer_id}"
    channel = await bob.transport.dial([dead, *alice.transport.addresses])
    await echo(channel)
    assert channel.remote_address == alice.transport.addresses[0].rpartition("/p2p/")[0]


async def test_dialling_needs_a_running_transport():
    identity = Identity.generate()
    stopped = Libp2pTransport(identity, [LOCAL])
    with pytest.raises(RuntimeError, match="does not run"):
        await stopped.dial([f"/ip4/127.0.0.1/tcp/1/p2p/{Identity.generate().peer_id}"])


@pytest.fixture
def deaf():
    """The port of a socket that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


@pytest.fixture
def closed_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


async def test_a_dead_and_a_deaf_address_do_not_hide_the_good_one(mesh, echo, deaf, closed_port):
    alice, bob = await mesh.start(), await mesh.start()
    suffix = f"/p2p/{alice.identity.peer_id}"
    dead = [f"/ip4/127.0.0.1/tcp/{port}{suffix}" for port in (closed_port, deaf)]
    channel = await bob.transport.dial([*dead, *alice.transport.addresses])
    await echo(channel)
    await channel.aclose()


async def test_the_losers_of_a_dial_are_closed(mesh, echo, until, deaf):
    alice, bob = await mesh.start(LOCAL, LOCAL, LOCAL), await mesh.start()
    suffix = f"/p2p/{alice.identity.peer_id}"
    channel = await bob.transport.dial([f"/ip4/127.0.0.1/tcp/{deaf}{suffix}", *alice.transport.addresses])
    await echo(channel)
    await until(lambda: bob.open_connections == alice.open_connections == 1)


async def test_a_failure_moves_on_at_once_and_success_waits_for_nobody(mesh, monkeypatch, closed_port):
    monkeypatch.setattr(dialling, "HEAD_START", 1000.0)
    monkeypatch.setattr(dialling, "DIAL_TIMEOUT", 1000.0)
    alice, bob = await mesh.start(), await mesh.start()
    dead = f"/ip4/127.0.0.1/tcp/{closed_port}/p2p/{alice.identity.peer_id}"
    with trio.fail_after(20):
        await bob.transport.dial([dead, *alice.transport.addresses])


async def test_a_peer_that_was_down_can_be_dialled_as_soon_as_it_is_up(mesh, echo, closed_port):
    identity, bob = Identity.generate(), await mesh.start()
    address = f"/ip4/127.0.0.1/tcp/{closed_port}"
    with pytest.raises(Unavailable, match="connection refused"):
        await bob.transport.dial([f"{address}/p2p/{identity.peer_id}"])
    alice = await mesh.start(address, identity=identity)
    await echo(await bob.transport.dial(alice.transport.addresses))


async def test_a_peer_that_never_answers_is_given_up_and_named(mesh, monkeypatch, until, deaf):
    monkeypatch.setattr(dialling, "DIAL_TIMEOUT", 0.4)
    bob = await mesh.start()
    address = f"/ip4/127.0.0.1/tcp/{deaf}/p2p/{Identity.generate().peer_id}"
    with pytest.raises(Unavailable, match=f"{address}: it takes the connection, then says nothing"):
        await bob.transport.dial([address])
    await until(lambda: bob.open_connections == 0)


async def test_another_peer_at_the_address_is_refused(mesh, until):
    alice, bob = await mesh.start(), await mesh.start()
    impostor = alice.transport.addresses[0].replace(alice.identity.peer_id, Identity.generate().peer_id)
    with pytest.raises(Unavailable, match="another peer answers there"):
        await bob.transport.dial([impostor])
    await until(lambda: bob.open_connections == alice.open_connections == 0)
    assert alice.inbound == []


async def test_what_is_wrong_with_each_address_is_said(mesh):
    bob = await mesh.start()
    stranger = Identity.generate().peer_id
    with pytest.raises(Unavailable) as caught:
        await bob.transport.dial(
            [
                f"/ip4/127.0.0.1/udp/1/quic-v1/p2p/{stranger}",
                "nonsense",
                "/ip4/127.0.0.1/tcp/1",
                f"/ip4/127.0.0.1/tcp/1/p2p/{bob.identity.peer_id}",
                f"/ip4/127.0.0.1/tcp/1/p2p/{stranger}",
                f"/ip4/127.0.0.1/tcp/1/p2p/{'x' * 2000}",
            ]
        )
    message = caught.value.message
    assert "only /ip4, /ip6 or /dns" in message
    assert "nonsense: it is not a multiaddr" in message
    assert "/ip4/127.0.0.1/tcp/1: it does not end in /p2p/" in message
    assert "that is this peer itself" in message
    assert "it names another peer than the first address" in message
    assert "it is too long" in message
    assert len(message) < 4000


async def test_no_address_at_all(mesh):
    bob = await mesh.start()
    with pytest.raises(Unavailable, match="no address of it is known"):
        await bob.transport.dial([])


async def test_no_more_addresses_than_the_bound_are_tried(mesh):
    bob = await mesh.start()
    peer_id = Identity.generate().peer_id
    with pytest.raises(Unavailable) as caught:
        await bob.transport.dial([f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id}" for port in range(1, 60)])
    assert caught.value.message.count("connection refused") == dialling.MAX_ADDRESSES


async def test_a_cancelled_dial_leaves_nothing(mesh, until, deaf):
    bob = await mesh.start()
    with trio.move_on_after(0.2):
        await bob.transport.dial([f"/ip4/127.0.0.1/tcp/{deaf}/p2p/{Identity.generate().peer_id}"])
    await until(lambda: bob.open_connections == 0)
