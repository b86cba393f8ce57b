from __future__ import annotations

import subprocess
import sys
from functools import partial

import pytest
import trio

from mesh.discovery import mdns
from mesh.discovery.announcement import Found
from mesh.discovery.mdns import Mdns
from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.interfaces import Interface

HANG = 30.0

PROGRAM = """
import sys, trio
from mesh.discovery.mdns import Mdns
from mesh.identity import Identity
from mesh.interfaces import Interface

async def main():
    identity = Identity.generate()
    address = f"/ip4/127.0.0.1/tcp/4001/p2p/{identity.peer_id}"
    mdns = Mdns(peer_id=identity.peer_id, mesh=sys.argv[1], role="gateway", addresses=lambda: [address])
    print(identity.peer_id, flush=True)
    await mdns.run(lambda found: found.mesh == sys.argv[1] and print("found", found.peer_id, found.role, flush=True))

trio.run(main)
"""


@pytest.fixture
def mesh_name(request):
    """No test may hear another one, or whoever else is on the network."""
    return f"test-{Identity.generate().peer_id[-12:]}"


def announcer(mesh: str, role: str = "node") -> tuple[Identity, Mdns]:
    identity = Identity.generate()
    addresses = [f"/ip4/127.0.0.1/tcp/{port}/p2p/{identity.peer_id}" for port in (4001, 4002)]
    return identity, Mdns(peer_id=identity.peer_id, mesh=mesh, role=role, addresses=lambda: addresses)


async def next_found(receiver: trio.MemoryReceiveChannel[Found]) -> Found:
    with trio.fail_after(HANG):
        return await receiver.receive()


async def of_mesh(receiver: trio.MemoryReceiveChannel[Found], mesh: str) -> Found:
    """The next of our mesh: others on this network may be heard too."""
    while (found := await next_found(receiver)).mesh != mesh:
        pass
    return found


async def test_two_processes_find_each_other(mesh_name):
    identity, ours = announcer(mesh_name)
    sender, receiver = trio.open_memory_channel[Found](100)
    process = await trio.lowlevel.open_process([sys.executable, "-c", PROGRAM, mesh_name], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(ours.run, sender.send_nowait)
            assert any(entry.endswith("127.0.0.1") for entry in ours.interfaces)
            found = await of_mesh(receiver, mesh_name)
            output = b""
            with trio.fail_after(HANG):
                while f"found {identity.peer_id} node\n".encode() not in output:
                    output += await process.stdout.receive_some()
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        await process.wait()
    assert found.peer_id == output.decode().split()[0]
    assert found == Found(found.peer_id, [f"/ip4/127.0.0.1/tcp/4001/p2p/{found.peer_id}"], mesh_name, "gateway")


async def test_peers_of_other_meshes_are_told_of_and_we_ourselves_are_not(mesh_name):
    ours, first = announcer(mesh_name)
    other, stranger = announcer(mesh_name + "-other")
    friend, second = announcer(mesh_name)
    sender, receiver = trio.open_memory_channel[Found](100)
    async with trio.open_nursery() as nursery:
        await nursery.start(first.run, sender.send_nowait)
        await nursery.start(stranger.run, lambda found: None)
        await nursery.start(second.run, lambda found: None)
        heard: dict[str, str] = {}
        while not heard.keys() >= {other.peer_id, friend.peer_id}:
            found = await next_found(receiver)
            heard[found.peer_id] = found.mesh
        await until(lambda: first.heard_itself)
        nursery.cancel_scope.cancel()
    assert heard[other.peer_id] == mesh_name + "-other"
    assert heard[friend.peer_id] == mesh_name
    assert ours.peer_id not in heard


async def test_who_is_announced_is_told_of_again_until_its_goodbye(mesh_name, monkeypatch):
    monkeypatch.setattr(mdns, "AGAIN", 0.1)
    _, first = announcer(mesh_name)
    friend, second = announcer(mesh_name)
    times: list[float] = []
    async with trio.open_nursery() as nursery:
        heard = lambda found: times.append(trio.current_time()) if found.peer_id == friend.peer_id else None  # noqa: E731
        await nursery.start(first.run, heard)
        async with trio.open_nursery() as friends:
            await friends.start(second.run, lambda found: None)
            await until(lambda: len(times) > 4)
            friends.cancel_scope.cancel()
        await until(lambda: trio.current_time() - times[-1] > 1)
        nursery.cancel_scope.cancel()


async def test_only_the_latest_are_kept_to_be_told_of_again(monkeypatch):
    monkeypatch.setattr(mdns, "MAX_ANNOUNCED", 3)
    sender, _receiver = trio.open_memory_channel[Found](1)
    announced: dict[str, Found] = {}
    listener = mdns._Listener(trio.lowlevel.current_trio_token(), sender, announced)
    for number in range(5):
        listener._hand_over(f"service-{number}", Found(Identity.generate().peer_id, [], "m", "node"))
    assert list(announced) == ["service-2", "service-3", "service-4"]


def test_a_peer_without_addresses_does_not_take_itself_for_deaf(mesh_name):
    assert Mdns(peer_id=Identity.generate().peer_id, mesh=mesh_name, role="client", addresses=list).heard_itself
    assert not announcer(mesh_name)[1].heard_itself


async def test_ending_says_goodbye(mesh_name):
    from zeroconf import ServiceBrowser, ServiceListener, Zeroconf

    removed: list[str] = []
    added: list[str] = []

    class Listener(ServiceListener):
        def add_service(self, zc, type_, name):
            if f"mesh={mesh_name}".encode() in (zc.get_service_info(type_, name).text or b""):
                added.append(name)

        def update_service(self, zc, type_, name):
            pass

        def remove_service(self, zc, type_, name):
            removed.append(name)

    zeroconf = await trio.to_thread.run_sync(partial(Zeroconf, interfaces=["127.0.0.1"], use_asyncio=False))
    try:
        ServiceBrowser(zeroconf, mdns.SERVICE, listener=Listener())
        _, ours = announcer(mesh_name)
        async with trio.open_nursery() as nursery:
            await nursery.start(ours.run, lambda found: None)
            await until(lambda: bool(added))
            nursery.cancel_scope.cancel()
        await until(lambda: added[0] in removed)
    finally:
        await trio.to_thread.run_sync(zeroconf.close)


async def until(condition):
    with trio.fail_after(HANG):
        while not condition():  # noqa: ASYNC110 - another library's threads give no event
            await trio.sleep(0.02)


async def test_without_multicast_it_says_so_and_what_to_do(monkeypatch, mesh_name):
    monkeypatch.setattr(mdns, "_takes_multicast", lambda interface: False)
    _, ours = announcer(mesh_name)
    with pytest.raises(Unavailable, match="no network interface that takes multicast; use --bootstrap"):
        await ours.run(lambda found: None)


async def test_a_taken_port_is_named(monkeypatch, mesh_name):
    def refuse(**options):
        raise OSError(98, "Address already in use")

    monkeypatch.setattr(mdns, "Zeroconf", refuse)
    _, ours = announcer(mesh_name)
    with pytest.raises(Unavailable, match="cannot listen on port 5353: Address already in use"):
        await ours.run(lambda found: None)


async def test_findings_that_nobody_takes_are_dropped_and_not_kept():
    sender, receiver = trio.open_memory_channel[Found](2)
    listener = mdns._Listener(trio.lowlevel.current_trio_token(), sender, {})
    for _ in range(5):
        listener._hand_over("a service", Found(Identity.generate().peer_id, [], "m", "node"))
    assert receiver.statistics().current_buffer_used == 2
    receiver.close()
    listener._hand_over("a service", Found(Identity.generate().peer_id, [], "m", "node"))


async def test_it_moves_to_the_interfaces_that_are_there(monkeypatch, mesh_name):
    """A network that is joined later, one that is left, and a while without any."""
    monkeypatch.setattr(mdns, "LOOK", 0.05)
    lo, late = Interface("lo", "127.0.0.1", 4), Interface("lo", "127.0.0.2", 4)
    there = [lo]
    monkeypatch.setattr(mdns, "interfaces", lambda asked: list(there))
    _, ours = announcer(mesh_name)
    sender, receiver = trio.open_memory_channel[Found](1000)
    async with trio.open_nursery() as nursery:
        await nursery.start(ours.run, sender.send_nowait)
        assert ours.interfaces == ["lo 127.0.0.1"]
        there.append(late)
        await until(lambda: ours.interfaces == ["lo 127.0.0.1", "lo 127.0.0.2"])
        there.clear()
        await until(lambda: ours.interfaces == [])
        there.append(late)
        await until(lambda: ours.interfaces == ["lo 127.0.0.2"])
        friend, other = announcer(mesh_name)
        await nursery.start(other.run, lambda found: None)
        assert (await of_mesh(receiver, mesh_name)).peer_id == friend.peer_id
        nursery.cancel_scope.cancel()


async def test_what_is_announced_follows_our_addresses(monkeypatch, mesh_name):
    monkeypatch.setattr(mdns, "LOOK", 0.05)
    peer_id = Identity.generate().peer_id
    addresses = [f"/ip4/127.0.0.1/tcp/{port}/p2p/{peer_id}" for port in (4001, 4002)]
    first = Mdns(peer_id=peer_id, mesh=mesh_name, role="node", addresses=lambda: addresses)
    _, second = announcer(mesh_name)
    sender, receiver = trio.open_memory_channel[Found](1000)
    async with trio.open_nursery() as nursery:
        await nursery.start(second.run, sender.send_nowait)
        await nursery.start(first.run, lambda found: None)
        assert (await of_mesh(receiver, mesh_name)).addresses == addresses
        addresses.pop()
        while (await of_mesh(receiver, mesh_name)).addresses != addresses:
            pass
        nursery.cancel_scope.cancel()


def test_an_interface_that_other_machines_cannot_reach_is_called_on_when_we_listen_there(monkeypatch, mesh_name):
    asked = []
    monkeypatch.setattr(mdns, "interfaces", lambda these: asked.append(these) or [])
    peer_id = Identity.generate().peer_id
    addresses = [f"/ip4/172.17.0.1/tcp/4001/p2p/{peer_id}", f"/dns4/example.org/tcp/4001/p2p/{peer_id}"]
    assert Mdns(peer_id=peer_id, mesh=mesh_name, role="node", addresses=lambda: addresses)._spots() == []
    assert asked == [{"172.17.0.1"}]


def test_one_ipv6_address_of_each_interface_will_do(monkeypatch):
    monkeypatch.setattr(mdns, "_takes_multicast", lambda interface: interface.name != "tun0")
    found = [
        Interface("lo", "127.0.0.1", 4),
        Interface("lo", "::1", 6),
        Interface("eth0", "192.168.1.5", 4),
        Interface("eth0", "192.168.1.6", 4),
        Interface("eth0", "fd00::1", 6),
        Interface("eth0", "fd00::2", 6),
        Interface("tun0", "fd01::1", 6),
    ]
    assert [spot.host for spot in mdns._spots(found)] == ["127.0.0.1", "192.168.1.5", "192.168.1.6", "fd00::1"]
