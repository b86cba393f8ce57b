import json
import os
import time

import pytest

from bootstrap import doctor
from mesh.identity import Identity
from mesh.invite import PREFIX, check, read, unseal
from mesh.keyring import FILE, Keyring
from mesh.state import StateFolder, default_state_dir

pytestmark = pytest.mark.usefixtures("own_environment")


ADDRESSES = [f"/ip4/127.0.0.1/tcp/4001/p2p/{Identity.from_seed(bytes(32)).peer_id}"]


@pytest.fixture
def member(tmp_path):
    """The state folder of a running member."""
    with StateFolder(tmp_path / "state") as folder:
        Keyring(folder.path / FILE, "ours").rotate()
        folder.write_addresses({"addresses": ADDRESSES, "pid": os.getpid()})
        yield folder.path


def test_an_invite_is_one_token_that_members_take(run, member):
    code, out, err = run("invite", "--state-dir", str(member))
    assert (code, err) == (0, "")
    (token,) = out.split()
    assert token.startswith(PREFIX)
    invite = read(unseal(token))
    assert (invite.mesh, invite.addresses) == ("ours", ADDRESSES)
    assert abs(invite.expires - time.time() - 24 * 3600) < 600
    check(unseal(token), Keyring.read(member / FILE))


@pytest.mark.parametrize(("text", "seconds"), [("90", 90), ("30m", 1800), ("1.5h", 5400), ("7d", 604800), ("45s", 45)])
def test_how_long_an_invite_is_good(run, member, text, seconds):
    token = run("invite", "--state-dir", str(member), "--expires", text)[1].strip()
    assert abs(read(unseal(token)).expires - time.time() - seconds) < 20


@pytest.mark.parametrize("text", ["", "h", "0", "-1h", "1w", "nan", "inf", "400d", "1e999h"])
def test_durations_that_are_none(run, member, text):
    code, out, err = run("invite", "--state-dir", str(member), "--expires", text)
    assert (code, out) == (2, "")
    assert "--expires" in err


def test_the_environment_names_the_folder(run, member, monkeypatch):
    monkeypatch.setenv("INFERMESH_STATE_DIR", str(member))
    assert run("invite")[0] == 0


def test_without_a_folder_it_is_that_of_the_bootstrap_peer(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    code, _, err = run("invite")
    assert code == 2
    assert f"{default_state_dir('bootstrap')} holds no network key" in err
    assert "--private" in err
    assert not default_state_dir("bootstrap").exists()


def test_nobody_runs_who_could_answer(run, member):
    (member / "addresses.json").unlink()
    code, out, err = run("invite", "--state-dir", str(member))
    assert (code, out) == (2, "")
    assert "no peer runs on" in err
    (member / "addresses.json").write_text(json.dumps({"addresses": ADDRESSES, "pid": 2**22 + 1}))  # over Linux' highest
    assert run("invite", "--state-dir", str(member))[0] == 2


def test_a_rotation_says_what_it_did_and_not_the_key(run, member):
    before = Keyring.read(member / FILE)
    code, out, _ = run("rotate-key", "--state-dir", str(member))
    after = Keyring.read(member / FILE)
    assert code == 0
    assert json.loads(out) == {"key_id": after.current.key_id, "old_keys_valid_for_hours": 24, "member_runs": True}
    assert [key.key_id for key in after.valid()] == [after.current.key_id, before.current.key_id]


def test_a_corrupt_key_file_is_left_alone(run, member):
    (member / FILE).write_text("mangled")
    for verb in ("invite", "rotate-key"):
        code, _, err = run(verb, "--state-dir", str(member))
        assert code == 2
        assert "is not a network key file" in err
    assert (member / FILE).read_text() == "mangled"


def test_the_doctor_tries_an_invite_and_says_what_is_wrong_with_a_broken_one(run, member, monkeypatch):
    monkeypatch.setattr(doctor, "JOIN_LIMIT", 0.2)
    token = run("invite", "--state-dir", str(member))[1].strip()
    code, out, _ = run("doctor", "--json", "--bootstrap", token, "--bootstrap", token[:-7] + "!")
    checks = {check["check"]: check for check in json.loads(out)["checks"]}
    assert code == 1
    assert (checks["invite 1"]["result"], checks["invite 2"]["result"]) == ("ok", "fail")
    assert "a character that is none of its own" in checks["invite 2"]["message"]
    assert f"bootstrap {ADDRESSES[0][-12:]}" in checks
    assert token[30:-7] not in out
