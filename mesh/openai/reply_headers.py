"""The headers of ours in a reply."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import quote

if TYPE_CHECKING:
    from mesh.messages.inference import Accepted

Headers = dict[str, str]
_SHOWN_IGNORED = 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def node_headers(accepted: Accepted) -> Headers:
    """Who answered. `node` is another machine's word: quoted, so that it is a header whatever it says."""
    return {
        "x-infermesh-node": quote(accepted.node, safe=" /:@+", errors="replace"),
        "x-infermesh-attempts": str(accepted.attempts),
    }


def ignored_header(ignored: list[str]) -> Headers:
    """What of the request was ignored; nothing when it was all understood."""
    if not ignored:
        return {}
    shown = [name if _PLAIN_NAME.fullmatch(name) else quote(name[:64], safe="") for name in ignored[:_SHOWN_IGNORED]]
    more = [f"and {len(ignored) - _SHOWN_IGNORED} more"] if len(ignored) > _SHOWN_IGNORED else []
    return {"x-infermesh-ignored": ", ".join(shown + more)}
