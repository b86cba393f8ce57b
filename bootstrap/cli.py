"""The program `mesh-bootstrap`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bootstrap.config import BootstrapConfig
from mesh.runtime import launch

if TYPE_CHECKING:
    from mesh.runtime import Program

DESCRIPTION = "The way into a mesh: a peer at a known address that tells others of each other."


def main() -> int:
    """Run the program. Returns the exit code."""
    return launch("bootstrap", BootstrapConfig, _serve, description=DESCRIPTION)


async def _serve(program: Program, config: BootstrapConfig) -> None:
    # Imported late: --help and a mistyped flag are answered without loading the network, and signals are obeyed while it loads.
    from bootstrap.life import serve

    await serve(program, config)
