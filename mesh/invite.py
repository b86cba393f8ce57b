"""Invites: how a newcomer gets into a private mesh without anybody copying the key.

1. A token is `PREFIX` and base64 of a MAC and what it covers: mesh, addresses, expiry, a nonce, the id of the key; never the key.
2. Only a member can tell whether an invite is good: it checks the MAC, then the expiry on its own clock.
3. A token is a secret until it expires: whoever bears it gets the key. It is in no log, error or repr.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import secrets
from typing import TYPE_CHECKING

import msgspec

from mesh.addresses import peer_of
from mesh.errors import Denied

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.keyring import Keyring, NetworkKey

PREFIX = "infermesh-invite-"
DOMAIN = b"infermesh-invite-v1\0"
MAC_BYTES = 32
MAX_SEALED = 4096
MAX_ADDRESSES = 16
EXPIRES = 24 * 3600.0
"""Seconds that an invite is good for unless its maker says otherwise."""
_RENEW = "ask a member for a fresh one: `mesh invite`"


class Invite(msgspec.Struct, frozen=True, kw_only=True):
    """What a token says. `expires` in seconds of the wall clock, for those who check it."""

    mesh: str
    addresses: list[str]
    expires: float
    nonce: bytes
    key_id: str


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Invite)


def is_invite(text: str) -> bool:
    """True when a bootstrap argument is meant as a token."""
    return text.startswith(PREFIX)


def issue(key: NetworkKey, mesh: str, addresses: Sequence[str], expires: float) -> str:
    """A token that lets its bearer in by way of the member at `addresses` until `expires`."""
    invite = Invite(
        mesh=mesh, addresses=list(addresses[:MAX_ADDRESSES]), expires=expires, nonce=secrets.token_bytes(16), key_id=key.key_id
    )
    payload = _encoder.encode(invite)
    return PREFIX + base64.urlsafe_b64encode(_mac(key, payload) + payload).decode().rstrip("=")


def unseal(token: str) -> bytes:
    """The bytes that the bearer presents. Raises ValueError naming the wrong part; never repeats the token."""
    body = token.removeprefix(PREFIX)
    if len(body) > 2 * MAX_SEALED:
        raise ValueError(f"the invite is too long; {_RENEW}")
    try:
        # The strict decoder: the lenient one skips what it does not know.
        sealed = base64.b64decode(body + "=" * (-len(body) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"the invite holds a character that is none of its own, or was cut; copy it whole or {_RENEW}") from None
    read(sealed)
    return sealed


def read(sealed: bytes) -> Invite:
    """What an invite claims; nothing of it is checked but its form. Raises ValueError naming the wrong part."""
    if not MAC_BYTES < len(sealed) <= MAX_SEALED:
        raise ValueError(f"the invite was cut or is too long; copy it whole or {_RENEW}")
    try:
        invite = _decoder.decode(sealed[MAC_BYTES:])
    except (ValueError, RecursionError):
        raise ValueError(f"the content of the invite is broken; copy it whole or {_RENEW}") from None
    if not invite.addresses or len(invite.addresses) > MAX_ADDRESSES:
        raise ValueError(f"the invite names {len(invite.addresses)} addresses; {_RENEW}")
    for number, address in enumerate(invite.addresses, 1):
        try:
            peer_of(address)
        except ValueError as error:
            raise ValueError(f"address {number} of the invite is wrong: {error}") from None
    return invite


def check(sealed: bytes, keyring: Keyring) -> None:
    """As a member: raise Denied unless the bearer may have the key."""
    try:
        invite = read(sealed)
    except ValueError as error:
        raise Denied(str(error), code="invite_invalid", status=403) from error
    key = keyring.find([invite.key_id])
    if key is None:
        raise Denied(
            f"the invite was made with a key that this mesh does not have, or no longer; {_RENEW}",
            code="invite_invalid",
            status=403,
        )
    if not hmac.compare_digest(_mac(key, sealed[MAC_BYTES:]), sealed[:MAC_BYTES]) or invite.mesh != keyring.mesh:
        raise Denied(f"the invite was changed after it was made; {_RENEW}", code="invite_invalid", status=403)
    if keyring.expired(invite.expires):
        raise Denied(f"the invite has expired; {_RENEW}", code="invite_expired", status=403)


def _mac(key: NetworkKey, payload: bytes) -> bytes:
    return hmac.digest(key.key, DOMAIN + payload, "sha256")
