"""Embedding vectors as they travel: 32-bit floats, little-endian, which is also what OpenAI's base64 holds."""

from __future__ import annotations

import sys
from array import array
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

FLOAT_SIZE = 4
MAX_BYTES = 3 * 1024 * 1024
"""Of all vectors in one answer: an event has to fit into a frame."""


def pack(values: Iterable[float]) -> bytes:
    """The bytes of a vector."""
    return _swapped(array("f", values)).tobytes()


def unpack(vector: bytes) -> list[float]:
    """The numbers in a vector. Raises ValueError when its length is none of a vector."""
    values = array("f")
    values.frombytes(vector)
    return _swapped(values).tolist()


def _swapped(values: array[float]) -> array[float]:
    if sys.byteorder == "big":
        values.byteswap()
    return values
