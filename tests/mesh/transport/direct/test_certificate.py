"""What the direct listener shows."""

from __future__ import annotations

import ssl

import pytest

from mesh.errors import Misconfigured
from mesh.transport.direct.certificate import Certificate, client_context, fingerprint_of


def shake_hands(client, server):
    """Both ends of a TLS connection in memory."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(to_client, to_server)
    far = server.wrap_bio(to_server, to_client, server_side=True)
    for end in (near, far, near, far):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return near


def test_the_fingerprint_is_that_of_the_certificate_shown():
    one, other = Certificate(), Certificate()
    near = shake_hands(client_context(), one.context)
    assert near.version() == "TLSv1.3"
    assert fingerprint_of(near.getpeercert(binary_form=True)) == one.fingerprint
    assert one.fingerprint != other.fingerprint


def test_older_tls_is_refused():
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode, old.maximum_version = False, ssl.CERT_NONE, ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError):
        shake_hands(old, Certificate().context)


def test_nothing_is_left_on_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Certificate()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    with pytest.raises(Misconfigured, match="--no-direct"):
        Certificate()
