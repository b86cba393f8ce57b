import os
import stat

import pytest

from mesh.errors import Misconfigured
from mesh.keyring import FILE, GRACE, MAX_KEYS, Keyring
from mesh.messages.link import Keys, Prove, SharedKey


class Clock:
    def __init__(self):
        self.now = 1_000_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def made(path, clock, times=1):
    keyring = Keyring(path, "m", clock=clock)
    for _ in range(times):
        keyring.rotate()
    return keyring


def ids(keys):
    return [key.key_id for key in keys]


def test_the_file_is_ours_alone_and_holds_everything(tmp_path, clock):
    path = tmp_path / FILE
    keyring = made(path, clock, times=2)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again = Keyring.read(path)
    assert again.mesh == "m"
    assert again.current == keyring.current
    assert Keyring.read(tmp_path / "none") is None


def test_an_old_key_ends_after_a_day_and_the_current_one_never(clock):
    keyring = made(None, clock)
    first = keyring.current
    second = keyring.rotate()
    assert keyring.valid() == [second, keyring.find([first.key_id])]
    clock.now += GRACE - 1
    assert keyring.find([first.key_id]) is not None
    clock.now += 2
    assert keyring.valid() == [second]
    assert keyring.find([first.key_id]) is None
    clock.now += 100 * GRACE
    assert keyring.find([first.key_id, second.key_id]) == second


def test_two_members_that_merge_agree_whoever_rotated(clock):
    one, other = made(None, clock), Keyring(None, "m", clock=clock)
    assert other.merge(one.shared())
    assert not other.merge(one.shared())
    one.rotate()
    other.rotate()  # At the same time: two keys of one generation.
    one.merge(other.shared())
    other.merge(one.shared())
    assert one.current == other.current
    assert ids(one.valid()) == ids(other.valid())
    assert len(one.valid()) == 3


def test_an_ended_key_does_not_come_back_by_way_of_a_slower_member(clock):
    one, other = made(None, clock), Keyring(None, "m", clock=clock)
    other.merge(one.shared())
    first = one.current
    one.rotate()
    clock.now += GRACE / 2
    other.merge(one.shared())
    clock.now += GRACE / 2 + 1
    assert one.find([first.key_id]) is None
    assert not one.merge([SharedKey(first.key_id, first.key, first.generation, GRACE)])
    assert one.find([first.key_id]) is None
    # `valid_for` says what is left of the day, so it ended there as well.
    assert other.find([first.key_id]) is None


def test_the_keyring_is_bounded(clock):
    keyring = made(None, clock, times=2 * MAX_KEYS)
    assert len(keyring.valid()) == MAX_KEYS
    keyring.merge([SharedKey(f"k{number}", bytes(32), 100 + number) for number in range(1000)])
    assert len(keyring.valid()) == MAX_KEYS


@pytest.mark.parametrize(
    "bad",
    [
        SharedKey("a", b"short", 1),
        SharedKey("", bytes(32), 1),
        SharedKey("x" * 33, bytes(32), 1),
        SharedKey("a\n", bytes(32), 1),
        SharedKey("a", bytes(32), 0),
        SharedKey("a", bytes(32), 2**53),
    ],
)
def test_a_key_of_the_wrong_shape_is_ignored(clock, bad):
    keyring = Keyring(None, "m", clock=clock)
    assert not keyring.merge([bad])
    assert keyring.current is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"mesh": "m", "keys": []}', b"\xff" * 100, b"[" * 60_000])
def test_a_corrupt_file_is_named_and_never_replaced(tmp_path, clock, content):
    path = tmp_path / FILE
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match="network key"):
        Keyring.read(path)
    with pytest.raises(Misconfigured, match="network key"):
        Keyring(path, "m", clock=clock).rotate()
    assert path.read_bytes() == content


def test_a_rotation_by_another_program_is_seen_once(tmp_path, clock):
    path = tmp_path / FILE
    member, told = made(path, clock), []
    member.subscribe(lambda: told.append(member.current.key_id))
    assert not member.reload()
    fresh = Keyring.read(path).rotate()
    assert member.reload()
    assert not member.reload()
    assert told == [fresh.key_id]
    assert len(member.valid()) == 2


def test_a_rotation_by_another_program_survives_a_merge(tmp_path, clock):
    path = tmp_path / FILE
    member = made(path, clock)
    fresh = Keyring.read(path).rotate()
    member.merge([SharedKey("lateral", bytes(32), member.current.generation)])
    assert member.find([fresh.key_id]) is not None
    assert Keyring.read(path).find([fresh.key_id]) is not None


def test_what_an_invite_brings_takes_the_place_of_keys_of_a_mesh_that_is_gone(tmp_path, clock):
    bearer = made(tmp_path / FILE, clock, times=3)
    mesh = made(None, clock)
    assert bearer.merge(mesh.shared(), instead=True)
    assert bearer.valid() == mesh.valid() == Keyring.read(tmp_path / FILE).valid()


def test_keys_that_cannot_be_stored_are_used_all_the_same(tmp_path, clock, caplog):
    folder = tmp_path / "gone"
    keyring = Keyring(folder / FILE, "m", clock=clock)
    with pytest.raises(Misconfigured, match="cannot lock"):
        keyring.rotate()
    assert keyring.merge(made(None, clock).shared())
    assert keyring.current is not None
    assert "is lost when this program ends" in caplog.text


def test_secrets_are_in_no_repr(clock):
    keyring = made(None, clock)
    secret = keyring.current.key
    shown = " ".join(
        [
            repr(keyring),
            repr(keyring.current),
            repr(keyring.valid()),
            repr(Keys(keyring.shared())),
            repr(Prove(b"n", ["k"], secret)),
        ]
    )
    assert keyring.current.key_id in shown
    assert repr(secret)[2:-1] not in shown
    assert "invite" not in shown


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_file_of_somebody_else_is_named(tmp_path, clock):
    path = tmp_path / FILE
    made(path, clock)
    path.chmod(0)
    with pytest.raises(Misconfigured, match="check its owner"):
        Keyring.read(path)
