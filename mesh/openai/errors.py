"""Errors that only this API has."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import msgspec

from mesh.errors import NotFound
from mesh.http.errors import error_body

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.errors import MeshError

NEAR_NAMES = 3
SHOWN_NAMES = 10
_SHOWN_LENGTH = 100


def model_not_found(model: str, known: Iterable[str]) -> NotFound:
    """The 404 for a model that nobody serves. It names those of `known` that are near, or else some that there are."""
    names = sorted(set(known))
    near = difflib.get_close_matches(model[:_SHOWN_LENGTH], names, NEAR_NAMES, cutoff=0.5)
    if near:
        advice = f"did you mean {' or '.join(near)}?"
    elif names:
        more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
        advice = f"there are: {', '.join(names[:SHOWN_NAMES])}{more}"
    else:
        advice = "no model is served here yet; start a node, then ask again"
    return NotFound(f"the model {model[:_SHOWN_LENGTH]!r} does not exist; {advice}", code="model_not_found", param="model")


def error_event(error: MeshError) -> bytes:
    """The last event of a stream that failed after it had begun."""
    return b"data: " + msgspec.json.encode(error_body(error)) + b"\n\n"
