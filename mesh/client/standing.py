"""Who a program is in the mesh: its identity and its access, from what it was given and from its state folder.

1. Without a state folder both are in memory alone: another run is another peer, which needs its invite again.
2. The folder is held until the resources are closed: one process at a time.
3. A key is never made where it could not be kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.access import Access, open_access
from mesh.config import CommonConfig
from mesh.config.addresses import check_bootstrap
from mesh.errors import Misconfigured
from mesh.identity import Identity, load_identity
from mesh.invite import is_invite
from mesh.keyring import FILE
from mesh.state import StateFolder

if TYPE_CHECKING:
    from collections.abc import Iterable
    from contextlib import ExitStack


@dataclass(frozen=True, kw_only=True)
class Standing:
    """`folder` is None when nothing is kept."""

    identity: Identity
    access: Access
    folder: StateFolder | None


def check_addresses(bootstrap: Iterable[str]) -> None:
    """Raise Misconfigured for the first that is neither an address to dial nor an invite; says which part is wrong."""
    for text in bootstrap:
        try:
            check_bootstrap(text)
        except ValueError as error:
            raise Misconfigured(f"bootstrap: {error}") from None


def open_standing(
    resources: ExitStack, *, bootstrap: Iterable[str], mesh: str, private: bool, state_dir: Path | str | None, founds: bool
) -> Standing:
    """Take the folder, which `resources` gives back. `founds`: may make the key of a new private mesh. Raises Misconfigured."""
    config = CommonConfig(bootstrap=list(bootstrap), mesh=mesh, private=private)
    folder = resources.enter_context(StateFolder(Path(state_dir))) if state_dir is not None else None
    path = folder.path if folder else None
    if private and not any(is_invite(text) for text in config.bootstrap):
        _check_key(path, founds=founds)
    identity = load_identity(path / "identity.pem") if path else Identity.generate()
    return Standing(identity=identity, access=open_access(config, path), folder=folder)


def _check_key(path: Path | None, *, founds: bool) -> None:
    if path is None and founds:
        raise Misconfigured("private without an invite makes a network key, and that needs a state_dir to be kept in")
    if path is None or not (founds or (path / FILE).exists()):
        raise Misconfigured(
            "private needs an invite (`mesh invite`) among the bootstrap addresses, or a state_dir that holds a network key"
        )
