"""What every TCP connection between peers is told."""

from __future__ import annotations

import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import trio

_TCP_THIN_LINEAR_TIMEOUTS = 16
"""Linux's; Python has no name for it."""


def prepare(connected: socket.socket | trio.socket.SocketType) -> None:
    """Send at once, notice dead ends, and repeat what is lost at a steady pace where little is under way.

    The latter is for heartbeats: with the usual doubling, three losses of one packet in a row look like a death.
    Raises OSError when it is not connected any more.
    """
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        with suppress(OSError):  # an older kernel, or one that only pretends to be Linux
            connected.setsockopt(socket.IPPROTO_TCP, _TCP_THIN_LINEAR_TIMEOUTS, 1)
