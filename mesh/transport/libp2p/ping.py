"""Answers libp2p's pings, which peers of other kinds send to see whether we are there.

The stock service keeps an entry for every peer that ever pinged. This one keeps nothing, echoes at most one ping in `PAUSE`
seconds on a stream, and ends a stream that is silent for `PATIENCE` seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio
from libp2p.io.exceptions import IncompleteReadError
from libp2p.io.utils import read_exactly
from libp2p.network.stream.exceptions import StreamEOF

if TYPE_CHECKING:
    from libp2p.abc import INetStream

SIZE = 32
PAUSE = 0.02
PATIENCE = 30.0


async def answer_pings(stream: INetStream) -> None:
    """Echo until the other side closes the stream, or is silent too long."""
    while True:
        with trio.move_on_after(PATIENCE) as patience:
            try:
                payload = await read_exactly(stream, SIZE)
            except (StreamEOF, IncompleteReadError):
                return
        if patience.cancelled_caught:
            return
        await stream.write(payload)
        await trio.sleep(PAUSE)
