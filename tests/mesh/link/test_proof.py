"""The proof of the network key on one link: members, strangers, liars and the bearers of invites."""

from contextlib import suppress

import pytest
import trio

from mesh.errors import Denied, MeshError, Unavailable
from mesh.invite import issue, unseal
from mesh.keyring import GRACE, KEY_BYTES, Keyring, NetworkKey
from mesh.link import Link
from mesh.link.proof import Credentials, mac
from mesh.messages.link import Heartbeat, Hello, Keys, Open, Proof, Prove, Records, Refused, SharedKey


@pytest.fixture
def kit(kit, raw_end):
    kit.raw_end = raw_end
    return kit


def ring(*shared, clock=None):
    keyring = Keyring(None, "test", **({"clock": clock} if clock else {}))
    keyring.merge(shared) if shared else keyring.rotate()
    return keyring


def private(side, identity, keyring, **invites):
    credentials = Credentials(own=identity.peer_id, keyring=keyring, invites=invites.get("invites", {}))
    return side(identity, credentials=credentials)


def token(keyring, kit, expires=1e12):
    return unseal(issue(keyring.current, "test", [f"/memory/1/p2p/{kit.far.peer_id}"], expires))


async def outcomes(kit, near, far):
    """What `run` of the two ends raised, and how long it took."""
    raised = {}

    async def run(name, link):
        try:
            await link.run()
        except Exception as error:  # noqa: BLE001 - the outcome is what a test looks at
            raised[name] = error

    began = trio.current_time()
    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        nursery.start_soon(run, "near", Link(here, near, dialled=True))
        nursery.start_soon(run, "far", Link(there, far, dialled=False))
    return raised, trio.current_time() - began


async def test_two_members_link_and_know_each_others_keys(autojump_clock, kit, side):
    one = ring()
    two = ring(*one.shared())
    async with kit.links(private(side, kit.near, one), private(side, kit.far, two)) as pair:
        assert pair.near.known_keys == pair.far.known_keys == {one.current.key_id}
        assert pair.near.hello.mesh == "test"


async def test_a_member_that_missed_a_rotation_links_by_the_old_key(autojump_clock, kit, side):
    now = [0.0]
    one, late = ring(clock=lambda: now[0]), None
    late = ring(*one.shared(), clock=lambda: now[0])
    one.rotate()
    async with kit.links(private(side, kit.near, one), private(side, kit.far, late)) as pair:
        assert len(pair.far.known_keys) == 2
        assert pair.outcomes == {}
    now[0] = GRACE + 1
    raised, _ = await outcomes(kit, private(side, kit.near, one), private(side, kit.far, late))
    assert {error.code for error in raised.values()} == {"network_key"}


@pytest.mark.parametrize("private_one", ["near", "far"])
async def test_a_stranger_from_an_open_mesh_is_told_why_at_once(autojump_clock, kit, side, private_one):
    sides = {"near": side(kit.near), "far": side(kit.far)}
    sides[private_one] = private(side, getattr(kit, private_one), ring())
    raised, took = await outcomes(kit, sides["near"], sides["far"])
    stranger = "far" if private_one == "near" else "near"
    assert isinstance(raised[stranger], Denied)
    assert raised[stranger].code == "private_mesh"
    assert "mesh invite" in raised[stranger].message
    assert isinstance(raised[private_one], MeshError)
    assert took < 2  # seconds of the mock clock: how long the two wait for each other, not how fast the machine is


async def test_another_key_is_refused_at_once_on_both_sides(autojump_clock, kit, side):
    raised, took = await outcomes(kit, private(side, kit.near, ring()), private(side, kit.far, ring()))
    for error in raised.values():
        assert isinstance(error, Denied)
        assert error.code == "network_key"
        assert "share no valid key" in error.message
    assert took < 2


async def test_the_same_key_id_with_another_key_is_refused(autojump_clock, kit, side):
    one = ring(SharedKey("a", b"1" * KEY_BYTES, 1))
    two = ring(SharedKey("a", b"2" * KEY_BYTES, 1))
    raised, took = await outcomes(kit, private(side, kit.near, one), private(side, kit.far, two))
    assert {error.code for error in raised.values()} == {"network_key"}
    assert took < 2


# Liars: the far end is in the test's hands


async def liar(kit, side, keyring, answer):
    """Run our link against a far end that answers our `Prove` as `answer(raw, prove)` does. What we raised, what it heard."""
    raised = []

    async def run(link):
        try:
            await link.run()
        except (Denied, Unavailable) as error:
            raised.append(error)

    heard = []
    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        nursery.start_soon(run, Link(here, private(side, kit.near, keyring), dialled=True))
        raw = kit.raw_end(there)
        prove = await raw.hear(Prove)
        await answer(raw, prove)
        with trio.move_on_after(10), suppress(trio.BrokenResourceError):
            await raw.hear(Hello)
        heard = list(raw.received)
        there.abort()
    return raised, heard


async def test_a_replayed_or_reflected_proof_is_refused(autojump_clock, kit, side, hello):
    keyring = ring()
    key = keyring.current
    near, far = kit.near.peer_id, kit.far.peer_id
    nonce = b"n" * 32

    def variants(ours):
        yield mac(key, far, near, nonce, b"an older nonce of the same size.", dialled=False)  # replayed
        yield mac(key, near, far, ours, nonce, dialled=True)  # our own, reflected
        yield mac(key, far, near, nonce, ours, dialled=True)  # made for the other direction
        yield mac(key, near, near, nonce, ours, dialled=False)  # of another peer
        yield b""

    for number in range(5):

        async def answer(raw, prove, number=number):
            await raw.say(Prove(nonce, [key.key_id]), Proof(key.key_id, list(variants(prove.nonce))[number]), hello(kit.far))

        raised, heard = await liar(kit, side, keyring, answer)
        assert [error.code for error in raised] == ["network_key"], number
        assert not [message for message in heard if not isinstance(message, Proof | Refused)]


async def test_a_good_proof_is_taken_from_the_same_hands(autojump_clock, kit, side, hello):
    keyring = ring()
    key = keyring.current
    records = []

    async def answer(raw, prove):
        proof = mac(key, kit.far.peer_id, kit.near.peer_id, b"n" * 32, prove.nonce, dialled=False)
        await raw.say(Prove(b"n" * 32, [key.key_id]), Proof(key.key_id, proof), hello(kit.far))
        records.append(await raw.hear(Hello))

    raised, _ = await liar(kit, side, keyring, answer)
    assert raised == []
    assert isinstance(records[0], Hello)


@pytest.mark.parametrize(
    "said",
    [
        [Prove(b"short", ["k"])],
        [Prove(b"n" * 32, [str(number) for number in range(17)])],
        [Proof("k", b"m" * 32)],
        [Keys([SharedKey("k", bytes(32), 9)])],
        [Records([])],
        [Heartbeat(1.0)],
        [Prove(b"n" * 32, []), Keys([SharedKey("k", bytes(32), 9)])],
        [Prove(b"n" * 32, []), Prove(b"n" * 32, [])],
    ],
)
async def test_nothing_is_told_or_learned_before_the_proof(autojump_clock, kit, side, said):
    keyring = ring()
    before = keyring.valid()

    async def answer(raw, prove):
        await raw.say(*said)

    raised, heard = await liar(kit, side, keyring, answer)
    assert len(raised) == 1
    assert keyring.valid() == before
    assert not [message for message in heard if not isinstance(message, Refused)]


async def test_a_silent_peer_is_given_up(autojump_clock, kit, side):
    async def answer(raw, prove):
        await trio.sleep(6)

    raised, _ = await liar(kit, side, ring(), answer)
    assert [error.code for error in raised] == ["no_hello"]


async def test_an_open_request_before_the_proof_reaches_no_service(autojump_clock, kit, side, words, ask, hello):
    service = words()
    credentials = Credentials(own=kit.near.peer_id, keyring=ring())
    raised, _ = await outcomes(kit, side(kit.near, credentials=credentials, service=service), side(kit.far))
    assert raised
    assert service.running == 0

    async def answer(raw, prove):
        await raw.say(hello(kit.far), Open(1, ask()))

    raised, heard = await liar(kit, side, ring(), answer)
    assert [error.code for error in raised] == ["network_key"]
    assert [type(message) for message in heard] == [Refused]


# Invites


async def test_the_bearer_of_an_invite_gets_every_valid_key_and_is_linked(autojump_clock, kit, side):
    member = ring()
    sealed = token(member, kit)
    member.rotate()
    bearer = Keyring(None, "test")
    near = private(side, kit.near, bearer, invites={kit.far.peer_id: sealed})
    async with kit.links(near, private(side, kit.far, member)) as pair:
        assert [key.key_id for key in bearer.valid()] == [key.key_id for key in member.valid()]
        assert pair.far.known_keys == {key.key_id for key in member.valid()}
        assert pair.outcomes == {}
    # From now on the key alone is enough, whoever dials.
    async with kit.links(private(side, kit.near, bearer), private(side, kit.far, member)):
        pass


async def test_a_bearer_with_the_keys_of_a_mesh_that_is_gone_gets_in(autojump_clock, kit, side):
    member, bearer = ring(), ring()
    bearer.rotate()
    near = private(side, kit.near, bearer, invites={kit.far.peer_id: token(member, kit)})
    async with kit.links(near, private(side, kit.far, member)):
        assert bearer.current == member.current


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]), "invite_invalid"),
        (lambda sealed: bytes(32) + sealed[32:], "invite_invalid"),
        (lambda sealed: b"x", "invite_invalid"),
        (lambda sealed: b"x" * 1_000_000, "invite_invalid"),
    ],
)
async def test_a_tampered_invite_is_refused(autojump_clock, kit, side, change, code):
    member, bearer = ring(), Keyring(None, "test")
    near = private(side, kit.near, bearer, invites={kit.far.peer_id: change(token(member, kit))})
    raised, took = await outcomes(kit, near, private(side, kit.far, member))
    assert {error.code for error in raised.values()} == {code}
    assert bearer.current is None
    assert took < 2


async def test_an_expired_invite_is_refused(autojump_clock, kit, side):
    member, bearer = ring(), Keyring(None, "test")
    near = private(side, kit.near, bearer, invites={kit.far.peer_id: token(member, kit, expires=1.0)})
    raised, took = await outcomes(kit, near, private(side, kit.far, member))
    assert raised["near"].code == raised["far"].code == "invite_expired"
    assert "expired" in raised["near"].message
    assert took < 2


async def test_an_invite_is_shown_to_nobody_but_the_member_that_it_names(autojump_clock, kit, side):
    member = ring()
    sealed = token(member, kit)
    for peer, shown in ((kit.far.peer_id, sealed), (kit.near.peer_id, b"")):
        seen = []

        async def run(link):
            with pytest.raises(Unavailable):
                await link.run()

        async with kit.channels() as (here, there), trio.open_nursery() as nursery:
            near = private(side, kit.near, Keyring(None, "test"), invites={peer: sealed})
            nursery.start_soon(run, Link(here, near, dialled=True))
            raw = kit.raw_end(there)
            seen.append(await raw.hear(Prove))
            there.abort()
        assert seen[0].invite == shown


def test_a_proof_depends_on_everything():
    key = NetworkKey(key_id="a", key=b"1" * 32, generation=1)
    base = ("x", "y", b"1" * 32, b"2" * 32)
    proofs = {mac(key, *base, dialled=True), mac(key, *base, dialled=False)}
    for place in range(4):
        changed = list(base)
        changed[place] = changed[place] + changed[place][:1] if place < 2 else b"3" * 32
        proofs.add(mac(key, *changed, dialled=True))
    proofs.add(mac(NetworkKey(key_id="b", key=b"1" * 32, generation=1), *base, dialled=True))
    proofs.add(mac(NetworkKey(key_id="a", key=b"2" * 32, generation=1), *base, dialled=True))
    assert len(proofs) == 8
