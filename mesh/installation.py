"""Is the `mesh` that was imported ours, and are the other rooms from the same place?"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from mesh import DISTRIBUTION
from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Sequence

ROOMS = ("mesh", "node", "gateway", "bootstrap")


def check_installation(rooms: Sequence[str] = ROOMS) -> None:
    """Raise Misconfigured unless all packages are ours and lie in one folder: their names are easy to collide with."""
    home = _folder(rooms[0])
    for room in rooms[1:]:
        if _folder(room) != home:
            raise Misconfigured(_advice(f"the package {room!r} comes from {_folder(room)}, but {rooms[0]!r} from {home}"))


def _folder(room: str) -> Path:
    try:
        package = importlib.import_module(room)
    except ImportError as error:
        raise Misconfigured(_advice(f"the package {room!r} cannot be imported: {error}")) from error
    if package.__file__ is None or getattr(package, "DISTRIBUTION", None) != DISTRIBUTION:
        raise Misconfigured(
            _advice(f"the package {room!r} is another project's, from {package.__file__ or list(package.__path__)}")
        )
    return Path(package.__file__).resolve().parent.parent


def _advice(problem: str) -> str:
    return f"{problem}; install {DISTRIBUTION} in an environment of its own"
