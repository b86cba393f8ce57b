"""Who may be linked with us: the key and the invites of a private mesh, and lists of peers.

1. A state folder that holds a network key is of a private mesh for ever: no flag makes it open by mistake.
2. An invite says which mesh it is for; a key is made by `--private` alone, and only where there is neither key nor invite.
3. The lists hold for both directions and before anything is said. A denied peer is denied even if it is allowed as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.addresses import peer_of
from mesh.errors import Denied, Misconfigured
from mesh.invite import Invite, is_invite, read, unseal
from mesh.keyring import FILE, Keyring

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from mesh.config import CommonConfig
    from mesh.identity import PeerId

REFUSALS = frozenset({"network_key", "private_mesh", "invite_invalid", "invite_expired", "peer_denied"})
"""Codes of refusals that only an operator can end: a program that meets one at its start gives up."""
_DEFAULT_MESH = "default"


@dataclass(frozen=True, kw_only=True)
class Access:
    """`bootstrap` holds addresses alone, those of the invites too. Without `keyring` the mesh is open."""

    mesh: str = _DEFAULT_MESH
    bootstrap: list[str] = field(default_factory=list)
    keyring: Keyring | None = None
    invites: Mapping[PeerId, bytes] = field(default_factory=dict, repr=False)
    """Sealed, by the member to whom each is shown."""
    allow: frozenset[str] = frozenset()
    """Empty: everybody."""
    deny: frozenset[str] = frozenset()

    def refusal(self, peer_id: PeerId) -> Denied | None:
        """Why a peer may not be linked with us, in words for both operators."""
        if peer_id in self.deny:
            return Denied(f"{peer_id} is on the deny list of the other peer (--deny-peer)", code="peer_denied", status=403)
        if self.allow and peer_id not in self.allow:
            return Denied(f"{peer_id} is not on the allow list of the other peer (--allow-peer)", code="peer_denied", status=403)
        return None

    def objection(self, peer_id: PeerId) -> Denied | None:
        """Why we do not dial a peer."""
        if self.refusal(peer_id) is None:
            return None
        lists = "--deny-peer names it" if peer_id in self.deny else "it is not among --allow-peer"
        return Denied(f"our own lists forbid {peer_id}: {lists}; change the list or the address", code="peer_denied", status=403)


def open_access(config: CommonConfig, state_dir: Path | None) -> Access:
    """What a program's configuration and state folder say; without a folder the key is in memory alone. Raises Misconfigured."""
    sealed = [_unseal(text) for text in config.bootstrap if is_invite(text)]
    invites = [read(one) for one in sealed]
    path = state_dir / FILE if state_dir else None
    keyring = Keyring.read(path) if path else None
    mesh = _one_mesh(config.mesh, keyring, invites)
    if keyring is None and (invites or config.private):
        keyring = Keyring(path, mesh)
        if not invites:
            keyring.rotate()
    addresses = [text for text in config.bootstrap if not is_invite(text)]
    addresses += [address for invite in invites for address in invite.addresses if address not in addresses]
    return Access(
        mesh=mesh,
        bootstrap=addresses,
        keyring=keyring,
        invites={peer_of(address): one for one, invite in zip(sealed, invites, strict=True) for address in invite.addresses},
        allow=frozenset(config.allow_peer),
        deny=frozenset(config.deny_peer),
    )


def _unseal(token: str) -> bytes:
    try:
        return unseal(token)
    except ValueError as error:
        raise Misconfigured(f"--bootstrap: {error}") from None


def _one_mesh(configured: str, keyring: Keyring | None, invites: Sequence[Invite]) -> str:
    """The name that flags, key and invites agree on; a default says nothing."""
    said = {"--mesh": configured} if configured != _DEFAULT_MESH else {}
    said |= {"the network key in the state folder": keyring.mesh} if keyring else {}
    said |= {f"invite {number}": invite.mesh for number, invite in enumerate(invites, 1)}
    if len(set(said.values())) > 1:
        listed = ", ".join(f"{source} says {name[:64]!r}" for source, name in said.items())
        raise Misconfigured(f"one peer is in one mesh, but {listed}; leave one away, or use another --state-dir")
    return next(iter(said.values()), configured)
