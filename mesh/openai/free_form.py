"""Values of clients that have no type of ours, such as a tool's schema."""

from __future__ import annotations

from mesh.errors import BadRequest

MAX_DEPTH = 32
"""Levels inside one such value; what travels on and is rendered by a template must not be deeper."""
_INT64 = range(-(2**63), 2**64)
"""The integers that MessagePack can carry."""


def check_free_form(value: object, path: str, depth: int = 0) -> None:
    """It must be able to travel. Raises BadRequest."""
    if depth > MAX_DEPTH:
        raise BadRequest(f"{path} is nested deeper than {MAX_DEPTH} levels", param=path)
    if isinstance(value, int) and value not in _INT64:
        raise BadRequest(f"{path} holds an integer of more than 64 bits; send it as text", param=path, code="out_of_range")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        check_free_form(each, path, depth + 1)
