"""The network keys of a private mesh, as one member knows them.

1. The current key is the one of the highest (generation, key id); everybody who knows the same keys agrees on it.
2. A key that a newer one replaced stays valid for `GRACE` seconds after this member learned of the newer, never longer.
3. The file is mode 600, replaced as a whole, changed under a lock; one that cannot be read is never replaced.
4. Keys leave the process in `shared` alone, for a proven peer. They are in no repr, log or error.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from mesh.errors import Misconfigured
from mesh.messages.link import SharedKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from pathlib import Path

FILE = "network-key.json"
KEY_BYTES = 32
GRACE = 24 * 3600.0
MAX_KEYS = 8
MAX_GENERATION = 2**53
MAX_FILE = 64 * 1024

logger = logging.getLogger(__name__)


class NetworkKey(msgspec.Struct, frozen=True, kw_only=True):
    """One key. `not_after` is this machine's wall clock; None for the current key."""

    key_id: str
    key: bytes
    generation: int
    not_after: float | None = None

    def __repr__(self) -> str:
        return f"NetworkKey({self.key_id!r}, generation={self.generation})"


class _File(msgspec.Struct, frozen=True, kw_only=True):
    mesh: str
    keys: list[NetworkKey]


class Keyring:
    """See the head of this file for the rules. Empty until the invite of a newcomer is answered."""

    def __init__(self, path: Path | None, mesh: str, *, clock: Callable[[], float] = time.time) -> None:
        """Without `path` the keys live in memory alone."""
        self.mesh = mesh
        self._path = path
        self._clock = clock
        self._keys: list[NetworkKey] = []
        self._seen: tuple[int, int] | None = None
        self._listeners: list[Callable[[], None]] = []

    def __repr__(self) -> str:
        return f"Keyring({self.mesh!r}, {[key.key_id for key in self._keys]})"

    @classmethod
    def read(cls, path: Path) -> Keyring | None:
        """The stored keyring, or None when there is no file. Raises Misconfigured when it cannot be read."""
        keyring = cls(path, "")
        stored = keyring._stored()
        if stored is None:
            return None
        keyring.mesh = stored.mesh
        keyring._seen = _stamp(path)
        keyring._adopt(stored.keys)
        return keyring

    @property
    def current(self) -> NetworkKey | None:
        """The newest key; None while there is none."""
        return self._keys[0] if self._keys else None

    def valid(self) -> list[NetworkKey]:
        """The keys that prove a member now, newest first."""
        now = self._clock()
        return [key for key in self._keys if key.not_after is None or key.not_after > now]

    def find(self, key_ids: Iterable[str]) -> NetworkKey | None:
        """The newest valid key among some."""
        wanted = set(key_ids)
        return next((key for key in self.valid() if key.key_id in wanted), None)

    def expired(self, moment: float) -> bool:
        """True when a moment on the wall clock, in seconds, is over."""
        return moment <= self._clock()

    def rotate(self) -> NetworkKey:
        """Make a new current key and store it. Raises Misconfigured when it cannot be written."""
        with self._locked():
            stored = self._stored()
            known = [*self._keys, *(stored.keys if stored else ())]
            generation = max((key.generation for key in known), default=0) + 1
            fresh = NetworkKey(key_id=secrets.token_hex(8), key=secrets.token_bytes(KEY_BYTES), generation=generation)
            self._adopt([*known, fresh])
            self._save()
        self._tell()
        return fresh

    def shared(self) -> list[SharedKey]:
        """The valid keys for a peer that proved one of them or holds an invite, newest first."""
        now = self._clock()
        return [
            SharedKey(key.key_id, key.key, key.generation, None if key.not_after is None else key.not_after - now)
            for key in self.valid()
        ]

    def merge(self, shared: Sequence[SharedKey], *, instead: bool = False) -> bool:
        """Take in the keys of another member and store them. True when one was new.

        `instead` of ours: an invite led into a mesh that does not know them.
        """
        # An older key than ours would come back to life by way of a member that learned of its end later (rule 2).
        oldest = self.current.generation if self.current and not instead else 0
        fresh = [self._received(one) for one in shared[:MAX_KEYS] if _is_sound(one) and one.generation >= oldest]
        try:
            with self._locked():
                stored = self._stored()
                known = [] if instead and fresh else [*self._keys, *(stored.keys if stored else ())]
                changed = self._adopt([*known, *fresh])
                if changed:
                    self._save()
        except Misconfigured as error:
            changed = self._adopt([*self._keys, *fresh])
            logger.error("%s; the new network key is lost when this program ends", error.message)  # noqa: TRY400 - says it all
        if changed:
            self._tell()
        return changed

    def reload(self) -> bool:
        """Look whether the file changed. True when it held a new key. Raises Misconfigured when it cannot be read."""
        stamp = _stamp(self._path)
        if stamp is None or stamp == self._seen:
            return False
        self._seen = stamp
        stored = self._stored()
        changed = stored is not None and self._adopt([*self._keys, *stored.keys])
        if changed:
            self._tell()
        return changed

    def subscribe(self, listener: Callable[[], None]) -> None:
        """Call `listener` after every change of the keys."""
        self._listeners.append(listener)

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _received(self, shared: SharedKey) -> NetworkKey:
        left = shared.valid_for
        not_after = None if left is None else self._clock() + min(max(left, 0.0), GRACE)
        return NetworkKey(key_id=shared.key_id, key=shared.key, generation=shared.generation, not_after=not_after)

    def _adopt(self, keys: Iterable[NetworkKey]) -> bool:
        """Rules 1 and 2. Of what is said twice of a key the earlier end counts. True when a key is new."""
        before = {key.key_id for key in self._keys}
        known: dict[str, NetworkKey] = {}
        for key in keys:
            first = known.setdefault(key.key_id, key)
            if key.not_after is not None and key.key == first.key:
                not_after = min(first.not_after or key.not_after, key.not_after)
                known[key.key_id] = msgspec.structs.replace(first, not_after=not_after)
        newest = sorted(known.values(), key=lambda key: (key.generation, key.key_id), reverse=True)[:MAX_KEYS]
        now = self._clock()
        older = [msgspec.structs.replace(key, not_after=min(key.not_after or now + GRACE, now + GRACE)) for key in newest[1:]]
        kept = [key for key in older if (key.not_after or 0.0) > now]
        self._keys = [msgspec.structs.replace(key, not_after=None) for key in newest[:1]] + kept
        return not {key.key_id for key in self._keys} <= before

    # The file

    def _stored(self) -> _File | None:
        path = self._path
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                stored = msgspec.json.decode(file.read(MAX_FILE), type=_File)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Misconfigured(f"cannot read the network key {path}: {error.strerror}; check its owner and mode") from error
        except (ValueError, RecursionError):
            # Not chained: the cause may quote what it read.
            raise Misconfigured(f"{path} is not a network key file; restore it, or move it away and join anew") from None
        if not stored.keys or any(len(key.key) != KEY_BYTES for key in stored.keys):
            raise Misconfigured(f"{path} holds no usable network key; restore it, or move it away and join anew")
        return stored

    def _save(self) -> None:
        path = self._path
        if path is None:
            return
        fresh = path.with_suffix(".new")
        try:
            fresh.unlink(missing_ok=True)  # One that another program left could have another mode.
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(msgspec.json.format(msgspec.json.encode(_File(mesh=self.mesh, keys=self._keys))) + b"\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        except OSError as error:
            raise Misconfigured(f"cannot write the network key {path}: {error.strerror}; make room or check the owner") from error
        self._seen = _stamp(path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the file against other programs, for the moment that a change takes."""
        if self._path is None:
            yield
            return
        try:
            lock = os.open(self._path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Misconfigured(f"cannot lock the network key {self._path}: {error.strerror}; check the folder") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def _is_sound(shared: SharedKey) -> bool:
    sound = (
        len(shared.key) == KEY_BYTES
        and 0 < len(shared.key_id) <= 32
        and shared.key_id.isalnum()
        and 0 < shared.generation < MAX_GENERATION
    )
    if not sound:
        logger.warning("a member sent a network key of the wrong shape; it was ignored")
    return sound


def _stamp(path: Path | None) -> tuple[int, int] | None:
    """What changes when the file is replaced."""
    try:
        found = path.stat() if path else None
    except OSError:
        return None
    return (found.st_ino, found.st_mtime_ns) if found else None
