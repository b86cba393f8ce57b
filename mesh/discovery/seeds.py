"""The peers through which the mesh is found again after a restart, or after every known peer was lost.

1. At most `MAX_SEEDS` peers with `MAX_ADDRESSES` addresses each, those seen last first.
2. The file is a hint: one that cannot be read or written costs a line in the log, nothing else. It holds no secret.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import msgspec

from mesh.addresses import names
from mesh.identity import PeerId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

FILE = "seeds.json"
MAX_SEEDS = 64
MAX_ADDRESSES = 8
MAX_FILE = 256 * 1024
"""Bytes."""

logger = logging.getLogger(__name__)


class _File(msgspec.Struct):
    mesh: str
    peers: dict[str, list[str]]


class Seeds:
    """`path`: the file, or None to remember only as long as the program runs."""

    def __init__(self, path: Path | None, mesh: str) -> None:
        self._path = path
        self._mesh = mesh
        self._peers: dict[PeerId, list[str]] = {}
        self._failed = False
        if path is not None and path.exists():
            self._read(path)

    @property
    def peers(self) -> dict[PeerId, list[str]]:
        """Addresses by peer, those seen last first."""
        return self._peers

    def see(self, seen: Mapping[PeerId, Sequence[str]]) -> None:
        """These are there now. Written when that is news."""
        fresh = {peer_id: list(addresses[:MAX_ADDRESSES]) for peer_id, addresses in seen.items() if addresses}
        merged = fresh | {peer_id: addresses for peer_id, addresses in self._peers.items() if peer_id not in fresh}
        kept = dict(list(merged.items())[:MAX_SEEDS])
        news = _content(kept) != _content(self._peers)
        self._peers = kept
        if news:
            self._write()

    def _read(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                said = msgspec.json.decode(file.read(MAX_FILE), type=_File)
        except (OSError, ValueError) as error:
            logger.warning("the known peers in %s cannot be read, so others must be found anew: %s", path, error)
            return
        if said.mesh == self._mesh:
            for peer_id, addresses in list(said.peers.items())[:MAX_SEEDS]:
                own = [address for address in addresses[:MAX_ADDRESSES] if names(address, PeerId(peer_id))]
                self._peers |= {PeerId(peer_id): own} if own else {}

    def _write(self) -> None:
        if self._path is None:
            return
        fresh = self._path.with_name(self._path.name + ".new")
        try:
            fresh.write_bytes(msgspec.json.encode(_File(self._mesh, {str(one): found for one, found in self._peers.items()})))
            fresh.replace(self._path)
        except OSError as error:
            level = logging.DEBUG if self._failed else logging.WARNING
            logger.log(level, "the known peers cannot be kept in %s: %s", self._path, error.strerror)
            self._failed = True
        else:
            self._failed = False


def _content(peers: Mapping[PeerId, Sequence[str]]) -> dict[PeerId, frozenset[str]]:
    """Without the order, which changes all the time."""
    return {peer_id: frozenset(addresses) for peer_id, addresses in peers.items()}
