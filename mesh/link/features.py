"""What this version of the link protocol can do beyond its first one.

1. The major version is in the protocol id; a hello tells the minor version, for people, and the features, for programs.
2. Both sides use the features that both told, and nothing else that is newer than the first version.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from collections.abc import Collection

    from mesh.messages.link import Hello

MINOR = 1
CREDIT = "credit-2"
"""Requests have a window of credit: see `credit.py`. The first version of it counted bytes alone."""
PIECES = "pieces"
"""Large messages are sent in pieces: see `pieces.py`."""
ATTACH = "attach"
"""Requests outlive their link: `Attach` goes on with one on another link."""
FEATURES = frozenset({CREDIT, PIECES, ATTACH})


def told(hello: Hello, features: Collection[str]) -> Hello:
    """Our hello, with the features of the link itself among those of its owner."""
    return msgspec.structs.replace(hello, minor=MINOR, features=[*hello.features, *sorted(features)])


def common(ours: Collection[str], theirs: Hello) -> frozenset[str]:
    """The features of the link itself that both sides have."""
    return frozenset(ours).intersection(theirs.features)
