"""The program `mesh-node`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from mesh.runtime import launch
from node.config import NodeConfig

if TYPE_CHECKING:
    from mesh.runtime import Program

DESCRIPTION = "Run models and serve them to a mesh. Without arguments it serves a small demo model, infermesh-demo."


def main() -> None:
    """Run the program and exit with its code."""
    sys.exit(launch("node", NodeConfig, _serve, description=DESCRIPTION))


async def _serve(program: Program, config: NodeConfig) -> None:
    # Imported late: --help and a mistyped flag are answered without loading the network.
    from node.app import serve

    await serve(program, config)
