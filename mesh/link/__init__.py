"""A link: one long-lived channel to one peer that carries control messages and any number of requests.

`codec`: messages to bytes and back. `writer`: the one task that writes. `pulse`: liveness and round trip. `opened`: requests that
we opened. `served`: requests that the other side opened. `link`: hello, and the reader that hands messages to the others.
"""

from mesh.link.link import Link, LinkSide

__all__ = ["Link", "LinkSide"]
