"""A link that will not be: how to say so, and what the other side's word for it means here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from mesh.errors import Conflict, Denied
from mesh.framing import frame
from mesh.link.codec import encode, join
from mesh.messages.link import Refused

if TYPE_CHECKING:
    from mesh.errors import MeshError
    from mesh.transport.base import Channel

CONFLICTS = frozenset({"duplicate", "replaced", "same_identity"})
"""Codes of `Refused` that mean a Conflict; every other one is a Denied."""
LIMIT = 1.0
READ_SIZE = 64 * 1024


async def refuse(channel: Channel, code: str, message: str) -> None:
    """Tell a peer why it gets no link, and close its channel. Blocks for at most `LIMIT`; errors do not matter here."""
    with trio.move_on_after(LIMIT):
        try:
            await channel.send_all(frame(join([encode(Refused(code, message))])))
            # Closing a socket with unread bytes resets it, and the reset may overtake the refusal: let the other side end it.
            while await channel.receive_some(READ_SIZE):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
    channel.abort()


def refusal_of(message: Refused) -> MeshError:
    """The error that the other side's refusal is on ours."""
    code = message.code[:64]
    # The text ends up in our operator's log: one line, bounded.
    text = " ".join(message.message.split())[:300]
    if code in CONFLICTS:
        return Conflict(f"the other side refused the link: {text}", code=code)
    return Denied(f"the other side refused the link: {text}", code=code, status=403)
