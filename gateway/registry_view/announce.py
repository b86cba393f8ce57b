"""Tells the mesh what the registered services have to offer."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from gateway.registry_view.foreign import ForeignServices
    from mesh.loopback import Loopback

LOAD_SECONDS = 0.5
"""Between two looks at the load; changes of services are told at once."""

logger = logging.getLogger(__name__)


async def keep_announcing(foreign: ForeignServices, loopback: Loopback) -> None:
    """Announce until cancelled."""
    unheard = 0
    while True:
        changed = foreign.changed
        entries = foreign.entries()
        before, unheard = unheard, len(entries) - loopback.offer(entries, foreign.load())
        if unheard and unheard != before:
            logger.warning(
                "%d models of registered services do not fit into this gateway's record: other gateways cannot route to them; "
                "register them at another gateway",
                unheard,
            )
        with trio.move_on_after(LOAD_SECONDS):
            await changed.wait()
