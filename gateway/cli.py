"""The program `mesh-gateway`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from gateway.config import GatewayConfig
from mesh.runtime import launch

if TYPE_CHECKING:
    from mesh.runtime import Program

DESCRIPTION = "Let clients use the mesh: one OpenAI-compatible endpoint."


def main() -> None:
    """Run the program and exit with its code."""
    sys.exit(launch("gateway", GatewayConfig, _serve, description=DESCRIPTION))


async def _serve(program: Program, config: GatewayConfig) -> None:
    # Imported late: --help and a mistyped flag are answered without loading the network, and signals are obeyed while it loads.
    from gateway.life import serve

    await serve(program, config)
