"""A link: one long-lived channel to one peer that carries control messages and any number of requests.

`side`: what its owner brings. `hello`: how two peers meet, with `greeting`, `proof`, `refusal` and `features`. `codec`: messages
to bytes and back. `writer`: the one task that writes, large messages in `pieces`. `pulse`: liveness and round trip. `opened`:
requests that we opened. `served`: requests that the other side opened. `credit`: how far answers run ahead of their readers.
`link`: the reader that hands messages to the others, and the link's life.
"""

from mesh.link.link import Link
from mesh.link.side import Control, LinkSide

__all__ = ["Control", "Link", "LinkSide"]
