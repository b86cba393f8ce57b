"""How a peer finds out whether others can dial it."""

from __future__ import annotations

import msgspec


class DialBack(msgspec.Struct, frozen=True, tag="dial_back"):
    """Try to reach the sender at these addresses of its own. Answered by one `DialedBack`."""

    addresses: list[str] = []


class DialedBack(msgspec.Struct, frozen=True, tag="dialed_back"):
    """`reached` are those of the addresses at which the asker answered; `seen_as` is the host that its link comes from.

    With a `code` nothing was tried, and `message` says why.
    """

    reached: list[str] = []
    seen_as: str = ""
    code: str = ""
    message: str = ""
