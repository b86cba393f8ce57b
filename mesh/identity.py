"""Who a peer is: an Ed25519 key, and the peer id that is the public key in libp2p's spelling.

1. The peer id *is* the public key (identity multihash of its protobuf), so any signature can be checked with the id alone.
2. Every signature names its purpose (`context`): a signature made for one purpose never verifies for another.
3. The key file is created once, mode 600, and never rewritten.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType

import base58
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from pathlib import Path

PeerId = NewType("PeerId", str)
"""Base58, e.g. `12D3KooW...`."""

# libp2p spec, peer-ids: multihash "identity" (0x00), length 36, then protobuf {type: Ed25519 (1), data: 32 bytes}.
_PREFIX = bytes.fromhex("0024080112" + "20")


def peer_id_of(public_key: bytes) -> PeerId:
    """The peer id of a raw 32-byte Ed25519 public key."""
    return PeerId(base58.b58encode(_PREFIX + public_key).decode("ascii"))


def public_key_of(peer_id: str) -> bytes:
    """The raw 32-byte public key inside a peer id. Raises ValueError when the id is not of an Ed25519 key."""
    raw: bytes = base58.b58decode(peer_id)
    if len(raw) != len(_PREFIX) + 32 or not raw.startswith(_PREFIX):
        raise ValueError(f"not an Ed25519 peer id: {peer_id[:64]!r}")
    return raw[len(_PREFIX) :]


def verify(peer_id: str, context: bytes, payload: bytes, signature: bytes) -> bool:
    """True when `signature` was made by `peer_id` over `payload` for the purpose `context`."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key_of(peer_id)).verify(signature, context + b"\0" + payload)
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass(frozen=True)
class Identity:
    """A peer's own key. `seed` is secret: it is never shown, logged or sent."""

    seed: bytes
    peer_id: PeerId

    def __repr__(self) -> str:
        return f"Identity({self.peer_id})"

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The identity of a raw 32-byte private key."""
        public = Ed25519PrivateKey.from_private_bytes(seed).public_key()
        return cls(seed, peer_id_of(public.public_bytes_raw()))

    @classmethod
    def generate(cls) -> Identity:
        """A fresh identity that is not stored anywhere."""
        return cls.from_seed(os.urandom(32))

    def sign(self, context: bytes, payload: bytes) -> bytes:
        """A 64-byte signature over `payload` for the purpose `context`."""
        return Ed25519PrivateKey.from_private_bytes(self.seed).sign(context + b"\0" + payload)


def load_identity(path: Path) -> Identity:
    """Read the key file, or create it when it does not exist. Raises Misconfigured when it is not a key."""
    try:
        pem = path.read_bytes()
    except FileNotFoundError:
        return _create(path)
    except OSError as error:
        raise Misconfigured(f"cannot read the identity file {path}: {error.strerror}; check its owner and mode") from error
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise Misconfigured(f"{path} is not an identity file; restore it, or move it away to get a fresh identity") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Misconfigured(f"{path} holds a key that is not Ed25519; restore ours, or move it away to get a fresh identity")
    return Identity.from_seed(key.private_bytes_raw())


def _create(path: Path) -> Identity:
    identity = Identity.generate()
    pem = Ed25519PrivateKey.from_private_bytes(identity.seed).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write_whole(path, pem)
    except FileExistsError:
        return load_identity(path)
    except OSError as error:
        raise Misconfigured(f"cannot write the identity file {path}: {error.strerror}; choose another --state-dir") from error
    return identity


def _write_whole(path: Path, content: bytes) -> None:
    """A new file that has all of its content, or is not there. Raises OSError; FileExistsError when somebody else was first."""
    # O_EXCL: two processes that start in one folder must not end up with two keys.
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(file, content)
        os.fsync(file)
    except OSError:
        # On a full disk it would be found at the next start, and refused as no key.
        path.unlink()
        raise
    finally:
        os.close(file)
