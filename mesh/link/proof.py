"""The proof of the network key, before hello.

1. Both sides say `Prove` (a fresh nonce, the ids of their keys), then `Proof`: a MAC over who proves to whom, in which direction,
   and both nonces. Neither can be replayed, reflected or relayed: the transport has proven both peer ids.
2. Nothing else of ours is said or answered before both proofs are checked: a stranger learns key ids and why it was refused.
3. The bearer of an invite shows it in `Prove` to the member that the invite names, and gets the keys before the proofs.
4. Where no key is common, the side that was dialled refuses and the other listens: two refusals would wait for each other.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.errors import Denied
from mesh.invite import check
from mesh.messages.link import Hello, Keys, Proof, Prove

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.identity import PeerId
    from mesh.keyring import Keyring, NetworkKey
    from mesh.link.codec import Received
    from mesh.link.greeting import Greeting

DOMAIN = b"infermesh-proof-v1\0"
NONCE_BYTES = 32
MAX_KEY_IDS = 16

NO_KEY = "the mesh is private and the two peers share no valid key; a member prints what to pass as --bootstrap: `mesh invite`"


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """What our side brings to the proof. `invites` by the member that each one names."""

    own: PeerId
    keyring: Keyring
    invites: Mapping[PeerId, bytes] = field(default_factory=dict, repr=False)


def private_mesh() -> Denied:
    """Why a peer of an open mesh gets nowhere with one of a private mesh."""
    return Denied(
        "that mesh is private; join it with `--bootstrap INVITE`: a member prints one by `mesh invite`",
        code="private_mesh",
        status=403,
    )


class Prover:
    """Our half of the proof on one link. `theirs` are the ids of the other side's keys, once it said them."""

    def __init__(self, credentials: Credentials, peer_id: PeerId, *, dialled: bool) -> None:
        self.theirs: frozenset[str] = frozenset()
        self._own = credentials.own
        self._keyring = credentials.keyring
        self._peer = peer_id
        self._dialled = dialled
        invite = credentials.invites.get(peer_id, b"") if dialled else b""
        self._said = Prove(secrets.token_bytes(NONCE_BYTES), [key.key_id for key in self._keyring.valid()], invite)

    async def run(self, greeting: Greeting) -> Received | None:
        """None once both sides proved the key, else the message that came instead. Raises Denied when we refuse."""
        await greeting.say(self._said)
        match await greeting.hear():
            case Prove() as heard:
                pass
            case Hello():
                raise _denied(NO_KEY)
            case other:
                return other
        if len(heard.nonce) != NONCE_BYTES or len(heard.key_ids) > MAX_KEY_IDS:
            raise _denied("the proof of the network key has the wrong shape")
        self.theirs = frozenset(heard.key_ids)
        key = self._keyring.find(self.theirs) or await self._let_in(greeting, heard)
        if key is None:
            answer = await greeting.hear()
            key = self._let_ourselves_in(answer)
            if key is None:
                return answer
        return await self._exchange(greeting, key, heard)

    async def _let_in(self, greeting: Greeting, heard: Prove) -> NetworkKey | None:
        """The key by which a bearer becomes a member; None when the other side has to act. Raises Denied."""
        if heard.invite:
            check(heard.invite, self._keyring)
            shared = self._keyring.shared()
            await greeting.say(Keys(shared))
            self.theirs = frozenset(key.key_id for key in shared)
            return self._keyring.current
        if not self._dialled:
            raise _denied(NO_KEY)
        return None

    def _let_ourselves_in(self, answer: Received) -> NetworkKey | None:
        if not (self._said.invite and isinstance(answer, Keys)):
            return None
        self._keyring.merge(answer.keys, instead=True)
        return self._keyring.find(key.key_id for key in answer.keys)

    async def _exchange(self, greeting: Greeting, key: NetworkKey, heard: Prove) -> Received | None:
        ours, theirs = self._said.nonce, heard.nonce
        await greeting.say(Proof(key.key_id, mac(key, self._own, self._peer, ours, theirs, dialled=self._dialled)))
        answer = await greeting.hear()
        if not isinstance(answer, Proof):
            return answer
        # A rotation between the two messages may let them name another key than we do.
        named = self._keyring.find([answer.key_id])
        if named is None or not hmac.compare_digest(
            mac(named, self._peer, self._own, theirs, ours, dialled=not self._dialled), answer.mac
        ):
            raise _denied("the proof of the network key is wrong; join anew with an invite: `mesh invite`")
        return None


def mac(key: NetworkKey, prover: PeerId, verifier: PeerId, nonce: bytes, other_nonce: bytes, *, dialled: bool) -> bytes:
    """The proof that `prover`, who dialled or was dialled, holds the key. Both nonces have a fixed length."""
    names = b"\0".join(name.encode() for name in (key.key_id, prover, verifier))
    return hmac.digest(key.key, DOMAIN + (b"d" if dialled else b"a") + nonce + other_nonce + names, "sha256")


def _denied(text: str) -> Denied:
    return Denied(text, code="network_key", status=403)
