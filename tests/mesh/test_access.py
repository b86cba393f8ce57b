import msgspec
import pytest

from mesh.access import open_access
from mesh.config import CommonConfig
from mesh.errors import Misconfigured
from mesh.identity import Identity
from mesh.invite import issue
from mesh.keyring import FILE, Keyring

PEERS = [Identity.from_seed(bytes([number]) * 32).peer_id for number in range(3)]
ADDRESS = f"/ip4/192.0.2.1/tcp/4001/p2p/{PEERS[0]}"
OTHER = f"/ip4/192.0.2.2/tcp/4001/p2p/{PEERS[1]}"


def token(mesh="ours"):
    keyring = Keyring(None, mesh)
    keyring.rotate()
    return issue(keyring.current, mesh, [ADDRESS], 1e12)


def test_a_mesh_is_open_unless_somebody_says_otherwise(tmp_path):
    access = open_access(CommonConfig(bootstrap=[ADDRESS]), tmp_path)
    assert (access.keyring, access.mesh, access.bootstrap, access.invites) == (None, "default", [ADDRESS], {})
    assert list(tmp_path.iterdir()) == []


def test_private_makes_a_key_once(tmp_path):
    first = open_access(CommonConfig(private=True, mesh="ours"), tmp_path)
    again = open_access(CommonConfig(private=True, mesh="ours"), tmp_path)
    assert first.keyring.current == again.keyring.current


def test_a_folder_with_a_key_stays_private_and_remembers_its_mesh(tmp_path):
    open_access(CommonConfig(private=True, mesh="ours"), tmp_path)
    access = open_access(CommonConfig(), tmp_path)
    assert access.keyring.current is not None
    assert access.mesh == "ours"
    with pytest.raises(Misconfigured, match="--mesh says 'other', the network key in the state folder says 'ours'"):
        open_access(CommonConfig(mesh="other"), tmp_path)


def test_an_invite_brings_mesh_and_addresses_but_no_key(tmp_path):
    access = open_access(CommonConfig(bootstrap=[OTHER, token()], private=True), tmp_path)
    assert access.mesh == access.keyring.mesh == "ours"
    assert access.bootstrap == [OTHER, ADDRESS]
    assert list(access.invites) == [PEERS[0]]
    assert access.keyring.current is None
    assert not (tmp_path / FILE).exists()


def test_contradictions(tmp_path):
    with pytest.raises(Misconfigured, match="invite 1 says 'ours', invite 2 says 'theirs'"):
        open_access(CommonConfig(bootstrap=[token(), token("theirs")]), tmp_path)
    with pytest.raises(Misconfigured, match="--mesh says 'mine'"):
        open_access(CommonConfig(bootstrap=[token()], mesh="mine"), tmp_path)
    (tmp_path / FILE).write_text("{")
    with pytest.raises(Misconfigured, match="not a network key file"):
        open_access(CommonConfig(private=True), tmp_path)


def test_the_lists(tmp_path):
    one, two, three = PEERS
    nobody_named = open_access(CommonConfig(), tmp_path)
    assert nobody_named.refusal(one) is None
    access = open_access(CommonConfig(allow_peer=[one, two], deny_peer=[two]), tmp_path)
    assert access.refusal(one) is access.objection(one) is None
    assert "--deny-peer" in access.refusal(two).message
    assert "--allow-peer" in access.refusal(three).message
    assert "--deny-peer names it" in access.objection(two).message
    assert access.refusal(three).code == access.objection(three).code == "peer_denied"


def test_an_invite_is_in_no_repr(tmp_path):
    config = CommonConfig(bootstrap=[ADDRESS, token()])
    access = open_access(config, tmp_path)
    assert token()[:-40] not in repr(access)
    assert repr(next(iter(access.invites.values())))[2:20] not in repr(access)
    assert "infermesh-invite" not in repr(config)
    assert msgspec.structs.replace(config, mesh="x").bootstrap == config.bootstrap
