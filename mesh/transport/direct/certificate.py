"""The certificate that a peer shows on its direct listener: self-signed, made at every start, known by its fingerprint alone.

1. The private key never touches a disk unencrypted, and no longer than it takes to load it.
2. Nobody looks at names, dates or issuers: whoever dials compares the fingerprint before it sends anything.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import secrets
import ssl
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mesh.errors import Misconfigured

_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "infermesh")])
_LIFE = dt.timedelta(days=3650)


class Certificate:
    """A fresh one. Raises Misconfigured when the folder for temporary files cannot be written."""

    def __init__(self) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = _self_signed(key)
        self.fingerprint = fingerprint_of(certificate.public_bytes(serialization.Encoding.DER))
        self.context = _server_context(key, certificate)


def fingerprint_of(certificate: bytes) -> bytes:
    """The SHA-256 of a certificate in DER."""
    return hashlib.sha256(certificate).digest()


def client_context() -> ssl.SSLContext:
    """For dialling: it takes any certificate, because the caller compares the fingerprint itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def _self_signed(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    builder = x509.CertificateBuilder().subject_name(_NAME).issuer_name(_NAME).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - _LIFE).not_valid_after(now + _LIFE)
    return builder.sign(key, hashes.SHA256())


def _server_context(key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    # Nobody resumes a session: each connection needs a ticket of ours.
    context.num_tickets = 0
    password = secrets.token_bytes(32).hex().encode()
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(password)
    )
    try:
        # `ssl` loads certificates from files only.
        with tempfile.TemporaryDirectory(prefix="infermesh-") as folder:
            file = Path(folder) / "certificate.pem"
            file.write_bytes(pem + certificate.public_bytes(serialization.Encoding.PEM))
            context.load_cert_chain(file, password=password)
    except OSError as error:
        raise Misconfigured(
            f"cannot write a temporary file for direct links: {error.strerror}; set TMPDIR, or start with --no-direct"
        ) from error
    return context
