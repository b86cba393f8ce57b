"""Where a worker keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """The user's, by the XDG specification; it may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The specification says to ignore a relative one.
    return (Path(base) if Path(base).is_absolute() else Path.home() / ".cache") / "infermesh"
