"""Marks of what is being tried, so that what ended a process is not tried again by the next.

1. A mark is a file that its process holds locked; the system lets go of it however the process ends. One that nobody holds was
   left by a process that ended in the middle.
2. A mark appears whole and locked, under the number of its process: several may try the same thing at once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Marks:
    """In one folder, of one machine: `key` says all that may change how a trial ends."""

    def __init__(self, folder: Path, *key: str) -> None:
        self._folder = folder
        self._key = key
        self._digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]

    def left(self, what: str) -> Path | None:
        """The mark of a process that ended while it tried this. Raises OSError."""
        return next((path for path in sorted(self._folder.glob(f"{what}-{self._digest}.*")) if _abandoned(path)), None)

    @contextlib.contextmanager
    def trying(self, what: str) -> Iterator[None]:
        """For the time of a trial; after an error the mark stays. Raises OSError where no mark can be made."""
        path = self._folder / f"{what}-{self._digest}.{os.getpid()}"
        draft = path.with_name(f".{path.name}")
        self._folder.mkdir(parents=True, exist_ok=True)
        with draft.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.write("\n".join((what, *self._key, "")))
            file.flush()
            os.fsync(file.fileno())
            draft.replace(path)
            yield
            path.unlink(missing_ok=True)


def _abandoned(path: Path) -> bool:
    """Nobody holds it. It may have been taken away in between."""
    try:
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return path.exists()
    except (FileNotFoundError, BlockingIOError):
        return False
