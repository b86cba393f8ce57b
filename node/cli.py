"""The program `mesh-node`."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from mesh.errors import Misconfigured
from mesh.runtime import launch
from node.config import NodeConfig
from node.multiplexer.arguments import with_multiplexer_file

if TYPE_CHECKING:
    from mesh.runtime import Program

DESCRIPTION = "Run models and serve them to a mesh. Without arguments it serves a small demo model, infermesh-demo."


def main() -> None:
    """Run the program and exit with its code."""
    try:
        argv, environ = with_multiplexer_file(sys.argv[1:], os.environ)
    except Misconfigured as error:
        print(f"mesh-node: {error.message}", file=sys.stderr)
        sys.exit(2)
    sys.exit(launch("node", NodeConfig, _serve, description=DESCRIPTION, argv=argv, environ=environ))


async def _serve(program: Program, config: NodeConfig) -> None:
    # Imported late: --help and a mistyped flag are answered without loading the network.
    from node.app import serve

    await serve(program, config)
