"""Whole peers of a private mesh over the memory network: who gets in, by what, and what a rotation does."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from mesh.access import Access
from mesh.errors import Denied, Misconfigured
from mesh.identity import Identity, PeerId
from mesh.invite import issue, unseal
from mesh.key_spread import LOOK
from mesh.keyring import FILE, GRACE, Keyring
from mesh.peer import Peer, PeerSettings
from mesh.transport.memory import MemoryNetwork, MemoryTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


@dataclass
class Town:
    """Peers of one memory network. `now` is the wall clock of all keyrings."""

    nursery: trio.Nursery
    network: MemoryNetwork = field(default_factory=MemoryNetwork)
    now: float = 1000.0

    def ring(self, like: Keyring | None = None, path: Any = None) -> Keyring:
        keyring = Keyring(path, "test", clock=lambda: self.now)
        keyring.merge(like.shared()) if like else keyring.rotate()
        return keyring

    def build(self, role: Any, *bootstrap: Peer, identity: Identity | None = None, **access: Any) -> Peer:
        identity = identity or Identity.generate()
        options = {"seen_as": access.pop("seen_as", None)}
        settings = PeerSettings(
            identity=identity,
            role=role,
            name=role,
            mesh="test",
            bootstrap=[peer.addresses[0] for peer in bootstrap],
            access=Access(mesh="test", **access),
        )
        return Peer(settings, MemoryTransport(identity, self.network, **{k: v for k, v in options.items() if v}))

    async def add(self, role: Any, *bootstrap: Peer, **access: Any) -> Peer:
        peer = self.build(role, *bootstrap, **access)
        await self.nursery.start(peer.run)
        return peer

    async def bearer(self, role: Any, member: Peer, token: str, keyring: Keyring | None = None) -> Peer:
        """A newcomer with an invite."""
        keyring = keyring or Keyring(None, "test", clock=lambda: self.now)
        return await self.add(role, member, keyring=keyring, invites={member.peer_id: unseal(token)})

    def invite(self, member: Peer, good_for: float = 60.0) -> str:
        keyring = ring_of(member)
        assert keyring.current is not None
        return issue(keyring.current, "test", member.addresses, self.now + good_for)

    async def refused(self, role: Any, *bootstrap: Peer, **access: Any) -> Denied:
        """What a peer that cannot get in ends with, and that it takes less than two seconds."""
        began = trio.current_time()
        with pytest.raises(ExceptionGroup) as caught:
            await self.build(role, *bootstrap, **access).run()
        assert trio.current_time() - began < 2
        found = caught.value.subgroup(Denied)
        while isinstance(found, ExceptionGroup):
            (found,) = found.exceptions
        assert isinstance(found, Denied)
        return found


def ring_of(peer: Peer) -> Keyring:
    keyring = peer.settings.access.keyring
    assert keyring is not None
    return keyring


def current(peer: Peer) -> str:
    key = ring_of(peer).current
    return key.key_id if key else ""


@asynccontextmanager
async def town(**network: Any) -> AsyncIterator[Town]:
    async with trio.open_nursery() as nursery:
        yield Town(nursery, MemoryNetwork(**network))
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], object], limit: float = 30.0) -> None:
    started = trio.current_time()
    while not condition():
        assert trio.current_time() - started < limit, "it did not happen"
        await trio.sleep(0.05)


async def test_members_meet_and_public_addresses_are_welcome(autojump_clock):
    async with town(latency=0.01) as here:
        ring = here.ring()
        bootstrap = await here.add("bootstrap", keyring=ring)
        node = await here.add("node", bootstrap, keyring=here.ring(ring), seen_as="/ip4/8.8.8.8/tcp/4001")
        gateway = await here.add("gateway", bootstrap, keyring=here.ring(ring))
        await until(lambda: node.peer_id in gateway.links)


async def test_strangers_of_every_kind_are_refused_at_start_and_learn_nothing(autojump_clock):
    async with town(latency=0.01) as here:
        bootstrap = await here.add("bootstrap", keyring=here.ring())
        node = await here.add("node", bootstrap, keyring=here.ring(ring_of(bootstrap)))
        for access, code in (({}, "private_mesh"), ({"keyring": here.ring()}, "network_key")):
            stranger = here.build("gateway", bootstrap, **access)
            refusal = await here.refused("gateway", bootstrap, **access)
            assert refusal.code == code
            assert "mesh invite" in refusal.message
            assert stranger.registry.peers == {}
        assert set(bootstrap.links) == set(bootstrap.registry.peers) == {node.peer_id}


async def test_a_stranger_with_another_way_in_goes_on(autojump_clock):
    async with town() as here:
        private = await here.add("bootstrap", keyring=here.ring())
        open_one = await here.add("bootstrap")
        node = await here.add("node", private, open_one)
        await trio.sleep(60)
        assert set(node.links) == {open_one.peer_id}
        assert private.links == {}


async def test_an_invite_lets_a_newcomer_in_who_can_invite_the_next(autojump_clock):
    async with town(latency=0.01) as here:
        bootstrap = await here.add("bootstrap", keyring=here.ring())
        node = await here.bearer("node", bootstrap, here.invite(bootstrap))
        assert current(node) == current(bootstrap)
        gateway = await here.bearer("gateway", node, here.invite(node))
        await until(lambda: len(gateway.links) == 1)
        assert (await here.refused("node", bootstrap)).code == "private_mesh"


async def test_bad_invites_end_the_start(autojump_clock):
    async with town(latency=0.01) as here:
        bootstrap = await here.add("bootstrap", keyring=here.ring())
        sealed = unseal(here.invite(bootstrap))
        expired = unseal(here.invite(bootstrap, good_for=-1))
        for shown, code in ((sealed[:-1] + b"?", "invite_invalid"), (expired, "invite_expired")):
            keyring = Keyring(None, "test")
            refusal = await here.refused("node", bootstrap, keyring=keyring, invites={bootstrap.peer_id: shown})
            assert refusal.code == code
            assert keyring.current is None
        assert bootstrap.links == {}


async def test_a_bearer_waits_for_a_member_that_is_late(autojump_clock):
    async with town() as here:
        ring, identity = here.ring(), Identity.generate()
        assert ring.current is not None
        address = f"/memory/7/p2p/{identity.peer_id}"
        sealed = unseal(issue(ring.current, "test", [address], here.now + 60))
        settings = PeerSettings(
            identity=Identity.generate(),
            role="node",
            name="n",
            mesh="test",
            bootstrap=[address],
            access=Access(mesh="test", keyring=Keyring(None, "test"), invites={identity.peer_id: sealed}),
        )
        node = Peer(settings, MemoryTransport(settings.identity, here.network))
        await here.nursery.start(node.run)
        await trio.sleep(20)
        assert current(node) == ""
        member = PeerSettings(
            identity=identity, role="bootstrap", name="b", mesh="test", access=Access(mesh="test", keyring=ring)
        )
        await here.nursery.start(Peer(member, MemoryTransport(identity, here.network, number=7)).run)
        await until(lambda: identity.peer_id in node.links, limit=60)
        assert current(node)


async def test_a_rotation_reaches_every_member_and_stops_nobody(autojump_clock, tmp_path):
    async with town(latency=0.01) as here:
        bootstrap = await here.add("bootstrap", keyring=here.ring(path=tmp_path / FILE))
        node = await here.bearer("node", bootstrap, here.invite(bootstrap))
        gateway = await here.bearer("gateway", bootstrap, here.invite(bootstrap))
        await until(lambda: node.peer_id in gateway.links)
        away = here.ring(ring_of(node))
        first = current(node)
        links = [bootstrap.links[node.peer_id], gateway.links[node.peer_id], gateway.links[bootstrap.peer_id]]

        other_program = Keyring.read(tmp_path / FILE)
        assert other_program is not None
        fresh = other_program.rotate()
        await until(lambda: {current(peer) for peer in (bootstrap, node, gateway)} == {fresh.key_id}, limit=LOOK + 2)
        await trio.sleep(5)
        assert not any(link.closed.is_set() for link in links)

        late = await here.add("node", bootstrap, keyring=away)
        # It came with the old key, and is told the new one.
        await until(lambda: current(late) == fresh.key_id)
        here.now += GRACE + 10
        assert {key.key_id for key in ring_of(node).valid()} == {fresh.key_id}
        assert first not in {key.key_id for key in ring_of(late).valid()}
        too_late = Keyring(None, "test")
        too_late.rotate()
        assert (await here.refused("node", bootstrap, keyring=too_late)).code == "network_key"
        assert not any(link.closed.is_set() for link in links)


async def test_a_rotation_spreads_along_a_chain(autojump_clock):
    async with town(latency=0.01) as here:
        one = await here.add("bootstrap", keyring=here.ring())
        two = await here.add("bootstrap", one, keyring=here.ring(ring_of(one)))
        three = await here.add("bootstrap", two, keyring=here.ring(ring_of(one)))
        assert one.peer_id not in three.links
        ring_of(three).rotate()
        await until(lambda: current(one) == current(two) == current(three))
        ring_of(one).rotate()
        await until(lambda: current(one) == current(two) == current(three))
        assert len(ring_of(two).valid()) == 3


async def test_a_broken_key_file_changes_nothing_while_running(autojump_clock, tmp_path, caplog):
    async with town() as here:
        bootstrap = await here.add("bootstrap", keyring=here.ring(path=tmp_path / FILE))
        before = current(bootstrap)
        (tmp_path / FILE).write_text("{")
        await trio.sleep(10 * LOOK)
        assert current(bootstrap) == before
        assert caplog.text.count("the known keys stay in use") == 1
        with pytest.raises(Misconfigured):
            ring_of(bootstrap).rotate()


async def test_lists_hold_whoever_dials(autojump_clock):
    async with town(latency=0.01) as here:
        known, banned = Identity.generate(), Identity.generate()
        deny = await here.add("bootstrap", deny=frozenset({banned.peer_id}))
        allow = await here.add("bootstrap", allow=frozenset({known.peer_id}))
        refusal = await here.refused("node", deny, identity=banned)
        assert (refusal.code, "--deny-peer" in refusal.message) == ("peer_denied", True)
        refusal = await here.refused("node", allow, identity=banned)
        assert (refusal.code, "--allow-peer" in refusal.message) == ("peer_denied", True)
        node = await here.add("node", deny, allow, identity=known)
        assert set(node.links) == {deny.peer_id, allow.peer_id}
        refusal = await here.refused("node", deny, deny=frozenset({deny.peer_id}))
        assert "our own lists" in refusal.message


async def test_a_gateway_does_not_dial_a_denied_node_that_it_hears_of(autojump_clock):
    async with town(latency=0.01) as here:
        bootstrap = await here.add("bootstrap")
        good, bad = await here.add("node", bootstrap), await here.add("node", bootstrap)
        gateway = await here.add("gateway", bootstrap, deny=frozenset({bad.peer_id}))
        await until(lambda: good.peer_id in gateway.links)
        await trio.sleep(5)
        assert bad.peer_id not in gateway.links
        assert not any(bad.peer_id in line for line in bad.trail)


async def test_nobody_hears_of_a_newcomer_before_it_has_the_key(autojump_clock):
    announced: list[PeerId] = []

    class Radio:
        def __init__(self, peer: Any) -> None:
            self.peer = peer

        async def run(self, found: Any, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
            announced.append(self.peer.peer_id)
            await trio.sleep_forever()

    async with town() as here:
        for keyring in (Keyring(None, "test"), here.ring()):
            identity = Identity.generate()
            settings = PeerSettings(
                identity=identity, role="node", name="n", mesh="test", access=Access(mesh="test", keyring=keyring)
            )
            peer = Peer(settings, MemoryTransport(identity, here.network), discovery={"radio": Radio})
            await here.nursery.start(peer.run)
            await trio.sleep(1)
            assert announced == ([peer.peer_id] if keyring.current else [])
