"""Norms, rotations and the attention of decoding rows in C, on tensors. Everything is contiguous, of one type, on the CPU."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

import torch

from node.worker.native.compiler import Unavailable, library

if TYPE_CHECKING:
    from torch import Tensor

TYPES = {torch.float32: 1, torch.bfloat16: 2}
LARGEST_HEAD, MOST_SHARED = 256, 16
"""As in kernels.c."""

_POINTER, _INTEGER, _REAL, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


class Functions:
    """For one type. Raises Unavailable."""

    def __init__(self, dtype: torch.dtype) -> None:
        if dtype not in TYPES:
            raise Unavailable(f"there are no kernels for {dtype}")
        made = library("kernels", f"TYPE={TYPES[dtype]}")
        made.norm.argtypes = [*[_POINTER] * 3, *[_INTEGER] * 2, _REAL, _THREADS]
        made.turn.argtypes = [*[_POINTER] * 8, *[_INTEGER] * 5, _REAL, _THREADS]
        made.look.argtypes = [*[_POINTER] * 6, *[_INTEGER] * 6, _REAL, _THREADS]
        made.norm.restype = made.turn.restype = made.look.restype = None
        self._made = made

    @staticmethod
    def suits(queries: int, keys: int, size: int) -> bool:
        """Whether so many heads of queries and of keys, of such a size, can be looked at."""
        shared, rest = divmod(queries, keys)
        return size <= LARGEST_HEAD and size % 2 == 0 and shared <= MOST_SHARED and not rest

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Rows [rows, dim] divided by their root mean square, times the weight [dim]."""
        rows = rows.contiguous()
        made = torch.empty_like(rows)
        count, size = rows.shape
        self._made.norm(made.data_ptr(), rows.data_ptr(), weight.data_ptr(), count, size, epsilon, torch.get_num_threads())
        return made

    def turn(
        self,
        every: Tensor,
        heads: int,
        keys: Tensor,
        values: Tensor,
        norm: Tensor | None,
        cosines: Tensor,
        sines: Tensor,
        places: Tensor,
        epsilon: float,
    ) -> Tensor:
        """The queries [rows, heads, size] of all heads [rows, heads + keys + values, size], turned; keys and values go to
        their places in [kv_heads, tokens, size]."""
        count, _, size = every.shape
        queries = every.new_empty(count, heads, size)
        self._made.turn(
            queries.data_ptr(), keys.data_ptr(), values.data_ptr(), every.data_ptr(), None if norm is None else norm.data_ptr(),
            cosines.data_ptr(), sines.data_ptr(), places.data_ptr(),
            count, heads, len(keys), size, keys.shape[1], epsilon, torch.get_num_threads(),
        )  # fmt: skip
        return queries

    def look(
        self,
        seen: Tensor,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        places: Tensor,
        positions: Tensor,
        *,
        count: int,
        window: int | None,
        scaling: float,
    ) -> None:
        """The first `count` rows of queries [rows, heads, size] look at [kv_heads, tokens, size] up to their places, so far back
        as they have a position or the window reaches; into `seen`, shaped as queries."""
        _, heads, size = queries.shape
        queries = queries.contiguous()
        self._made.look(
            seen.data_ptr(), queries.data_ptr(), keys.data_ptr(), values.data_ptr(), places.data_ptr(),
            positions.data_ptr(),
            count, heads, len(keys), size, keys.shape[1], window or 0, scaling, torch.get_num_threads(),
        )  # fmt: skip


def functions(dtype: torch.dtype) -> Functions:
    """Made once. Raises Unavailable."""
    made = _made(dtype)
    if isinstance(made, Unavailable):
        raise Unavailable(str(made))
    return made


def found(dtype: torch.dtype) -> Functions | None:
    """The same, or None."""
    made = _made(dtype)
    return None if isinstance(made, Unavailable) else made


@functools.cache
def _made(dtype: torch.dtype) -> Functions | Unavailable:
    """What cannot be compiled is not tried again in this process."""
    try:
        return Functions(dtype)
    except Unavailable as reason:
        return reason
