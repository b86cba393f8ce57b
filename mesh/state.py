"""The state folder of one peer: its key, its lock, its live addresses."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

logger = logging.getLogger(__name__)

_LOCK = "lock"
_ADDRESSES = "addresses.json"


def default_state_dir(role: str) -> Path:
    """Where a role keeps its state when nobody says otherwise."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "infermesh" / role
    base = os.environ.get("XDG_STATE_HOME", "")
    # The specification says to ignore a relative one.
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".local" / "state"
    return folder / "infermesh" / role


def read_addresses(path: Path) -> list[str] | None:
    """Where the peer that runs on a state folder is reached, loopback first; None when none runs there."""
    try:
        said = json.loads((path / _ADDRESSES).read_bytes())
        os.kill(int(said["pid"]), 0)
        return [str(address) for address in said["addresses"]]
    except PermissionError:  # Somebody else's process: it is there.
        return [str(address) for address in said["addresses"]]
    except (OSError, ValueError, KeyError, TypeError):
        return None


class StateFolder:
    """Creates the folder, mode 700, and holds its lock from `__enter__` to `__exit__`. Raises Misconfigured."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._lock = -1

    def __enter__(self) -> Self:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise Misconfigured(
                f"cannot use the state folder {self.path}: {error.strerror}; choose another --state-dir"
            ) from error
        self._take_lock()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        (self.path / _ADDRESSES).unlink(missing_ok=True)
        os.close(self._lock)  # The file stays: removing it would let two processes hold two locks of one name.

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._lock, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._lock)
            raise Misconfigured(
                f"the state folder {self.path} is in use by process {holder}; stop it, or give this one another --state-dir"
            ) from error
        with suppress(OSError):  # A full disk: the lock holds all the same, only its holder is not named.
            os.ftruncate(self._lock, 0)
            os.pwrite(self._lock, f"{os.getpid()}\n".encode(), 0)

    def write_addresses(self, addresses: dict[str, Any]) -> None:
        """Tell other programs on this machine how to reach the peer; the file is gone when the peer is.

        A disk that fails is logged and stops nothing.
        """
        fresh = self.path / (_ADDRESSES + ".new")
        try:
            fresh.write_text(json.dumps(addresses, indent=2) + "\n", encoding="utf-8")
            fresh.replace(self.path / _ADDRESSES)
        except OSError as error:
            fresh.unlink(missing_ok=True)
            logger.warning(
                "cannot write the live addresses to %s: %s; `mesh invite` does not work until the next start",
                fresh.name,
                error.strerror,
            )
