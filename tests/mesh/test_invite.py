import base64

import msgspec
import pytest

from mesh.errors import Denied
from mesh.identity import Identity
from mesh.invite import MAC_BYTES, PREFIX, Invite, check, issue, read, unseal
from mesh.keyring import GRACE, Keyring

PEER = Identity.from_seed(bytes(32)).peer_id
ADDRESS = f"/ip4/192.0.2.1/tcp/4001/p2p/{PEER}"


@pytest.fixture
def keyring():
    keyring = Keyring(None, "m", clock=lambda: 100.0)
    keyring.rotate()
    return keyring


def token(keyring, expires=200.0, **changes):
    return issue(keyring.current, **({"mesh": "m", "addresses": [ADDRESS], "expires": expires} | changes))


def packed(sealed):
    return PREFIX + base64.urlsafe_b64encode(sealed).decode().rstrip("=")


def test_an_invite_says_where_to_go_and_not_the_key(keyring):
    sealed = unseal(token(keyring))
    invite = read(sealed)
    assert (invite.mesh, invite.addresses, invite.expires) == ("m", [ADDRESS], 200.0)
    assert keyring.current.key not in sealed
    assert token(keyring) != token(keyring)
    check(sealed, keyring)
    check(sealed, keyring)  # It is good for more than one.


def test_an_expired_invite(keyring):
    for expires in (100.0, 99.0):
        with pytest.raises(Denied, match="has expired; ask a member") as caught:
            check(unseal(token(keyring, expires=expires)), keyring)
        assert caught.value.code == "invite_expired"


def test_any_changed_byte_is_noticed(keyring):
    sealed = unseal(token(keyring))
    for place in range(len(sealed)):
        changed = sealed[:place] + bytes([sealed[place] ^ 1]) + sealed[place + 1 :]
        with pytest.raises(Denied) as caught:
            check(changed, keyring)
        assert caught.value.code == "invite_invalid"


def test_an_invite_of_another_key_mesh_or_member(keyring):
    stranger = Keyring(None, "m")
    stranger.rotate()
    with pytest.raises(Denied, match="does not have, or no longer"):
        check(unseal(token(stranger)), keyring)
    with pytest.raises(Denied, match="was changed"):
        check(unseal(token(keyring, mesh="other")), keyring)


def test_an_invite_outlives_a_rotation_by_a_day(keyring):
    now = [0.0]
    ring = Keyring(None, "m", clock=lambda: now[0])
    ring.rotate()
    sealed = unseal(token(ring, expires=10 * GRACE))
    ring.rotate()
    check(sealed, ring)
    now[0] = GRACE + 1
    with pytest.raises(Denied, match="does not have, or no longer"):
        check(sealed, ring)


def test_a_malformed_token_is_refused_by_its_wrong_part(keyring):
    good = token(keyring)
    mac, nonce = bytes(MAC_BYTES), bytes(16)

    def with_addresses(*addresses):
        invite = Invite(mesh="m", addresses=list(addresses), expires=1.0, nonce=nonce, key_id="k")
        return packed(mac + msgspec.msgpack.encode(invite))

    for bad, said in (
        (PREFIX, "was cut"),
        (PREFIX + "AAAA", "was cut"),
        (good[:-9], "broken|was cut"),
        (good + "!", "a character"),
        (good[:40] + " " + good[40:], "a character"),
        (good[:40] + "é" + good[40:], "a character"),
        (PREFIX + "A" * 20_000, "too long"),
        (packed(mac + b"\xc1"), "content"),
        (packed(mac + b"\x91" * 2000), "content"),
        (with_addresses(), "0 addresses"),
        (with_addresses(*[ADDRESS] * 17), "17 addresses"),
        (with_addresses(ADDRESS, "/ip4/192.0.2.1/tcp/1"), "address 2 of the invite is wrong"),
    ):
        with pytest.raises(ValueError, match=said) as caught:
            unseal(bad)
        assert good[len(PREFIX) : len(PREFIX) + 20] not in str(caught.value)
