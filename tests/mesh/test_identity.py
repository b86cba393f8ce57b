from __future__ import annotations

import os
import stat
import warnings

import pytest

from mesh.errors import Misconfigured
from mesh.identity import Identity, load_identity, peer_id_of, public_key_of, verify


def test_a_peer_id_is_the_one_libp2p_derives():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from libp2p.crypto.ed25519 import create_new_key_pair
        from libp2p.peer.id import ID

    for _ in range(20):
        identity = Identity.generate()
        assert str(ID.from_pubkey(create_new_key_pair(identity.seed).public_key)) == identity.peer_id


def test_a_peer_id_holds_its_public_key():
    identity = Identity.from_seed(bytes(range(32)))
    assert peer_id_of(public_key_of(identity.peer_id)) == identity.peer_id
    assert identity.peer_id.startswith("12D3KooW")


@pytest.mark.parametrize("text", ["", "12D3KooW", "0OIl", "QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "12D3KooW\u00e9"])
def test_what_is_not_an_ed25519_peer_id_is_refused(text):
    with pytest.raises(ValueError, match=r".*"):
        public_key_of(text)


def test_a_signature_holds_for_its_purpose_only():
    identity = Identity.generate()
    signature = identity.sign(b"record", b"payload")
    assert verify(identity.peer_id, b"record", b"payload", signature)
    assert not verify(identity.peer_id, b"hello", b"payload", signature)
    assert not verify(identity.peer_id, b"record", b"payloaD", signature)
    assert not verify(Identity.generate().peer_id, b"record", b"payload", signature)
    assert not verify("nobody", b"record", b"payload", signature)
    assert not verify(identity.peer_id, b"record", b"payload", b"short")


def test_the_seed_is_never_shown():
    identity = Identity.generate()
    assert repr(identity) == f"Identity({identity.peer_id})"


def test_a_key_file_is_made_once_and_private(tmp_path):
    path = tmp_path / "state" / "identity.key"
    first = load_identity(path)
    content = path.read_bytes()
    assert load_identity(path) == first
    assert path.read_bytes() == content
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path, content):
    path = tmp_path / "identity.key"
    path.write_bytes(content)
    with pytest.raises(Misconfigured, match="not an identity file"):
        load_identity(path)
    assert path.read_bytes() == content


def test_a_key_of_another_kind_is_refused(tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path / "identity.key"
    path.write_bytes(pem)
    with pytest.raises(Misconfigured, match="not Ed25519"):
        load_identity(path)


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Misconfigured, match=r"cannot (read|write) the identity file"):
        load_identity(tmp_path / "file" / "identity.key")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_file_is_named(tmp_path):
    path = tmp_path / "identity.key"
    load_identity(path)
    path.chmod(0)
    with pytest.raises(Misconfigured, match="cannot read"):
        load_identity(path)


def test_a_disk_that_fails_leaves_no_half_of_a_key(tmp_path, monkeypatch):
    def full(_file, _content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(Misconfigured, match="No space left on device; choose another --state-dir"):
        load_identity(tmp_path / "identity.pem")
    assert list(tmp_path.iterdir()) == []
