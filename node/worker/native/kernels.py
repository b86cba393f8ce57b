"""Norms, rotations and the attention of decoding rows in C; see `node.worker.fused.kernels.Kernels`."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

import torch

from node.worker.attention import attend_pieces
from node.worker.native.compiler import Unavailable, library

if TYPE_CHECKING:
    from torch import Tensor

    from node.worker.attention import StepContext
    from node.worker.fused.kernels import Attention, Heads, Turn

TYPES = {torch.float32: 1, torch.bfloat16: 2}
LARGEST_HEAD, MOST_SHARED = 256, 16
"""As in kernels.c."""

_POINTER, _INTEGER, _REAL, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


@functools.cache
def _functions(dtype: torch.dtype) -> ctypes.CDLL:
    made = library("kernels", f"TYPE={TYPES[dtype]}")
    made.norm.argtypes = [*[_POINTER] * 3, *[_INTEGER] * 2, _REAL, _THREADS]
    made.turn.argtypes = [*[_POINTER] * 8, *[_INTEGER] * 5, _REAL, _THREADS]
    made.look.argtypes = [*[_POINTER] * 6, *[_INTEGER] * 6, _REAL, _THREADS]
    made.norm.restype = made.turn.restype = made.look.restype = None
    return made


class NativeKernels:
    """For one type and such heads, on the CPU. Raises Unavailable."""

    def __init__(self, dtype: torch.dtype, heads: Heads) -> None:
        if dtype not in TYPES:
            raise Unavailable(f"there are no kernels for {dtype}")
        shared, rest = divmod(heads.queries, heads.keys)
        if rest or shared > MOST_SHARED or heads.size > LARGEST_HEAD or heads.size % 2:
            raise Unavailable(f"there are no kernels for {heads}")
        self._functions = _functions(dtype)

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See Kernels."""
        rows = rows.contiguous()
        made = torch.empty_like(rows)
        count, size = rows.shape
        self._functions.norm(made.data_ptr(), rows.data_ptr(), weight.data_ptr(), count, size, epsilon, torch.get_num_threads())
        return made

    def attend(self, every: Tensor, attention: Attention, turn: Turn, step: StepContext) -> Tensor:
        """See Kernels. Pieces of prompts are looked at by torch."""
        heads, threads = attention.heads, torch.get_num_threads()
        keys, values = step.arena.keys[attention.layer], step.arena.values[attention.layer]
        count, sizes = len(every), (heads.queries, heads.keys, heads.size, keys.shape[1])
        queries = every.new_empty(count, heads.queries, heads.size)
        norm = None if attention.norm is None else attention.norm.data_ptr()
        arena = (keys.data_ptr(), values.data_ptr())
        self._functions.turn(
            queries.data_ptr(), *arena, every.data_ptr(), norm, turn.cosines.data_ptr(), turn.sines.data_ptr(),
            step.places.data_ptr(), count, *sizes, attention.epsilon, threads,
        )  # fmt: skip
        seen = torch.empty_like(queries)
        self._functions.look(
            seen.data_ptr(), queries.data_ptr(), *arena, step.places.data_ptr(), turn.positions.data_ptr(),
            step.decoding, *sizes, attention.window or 0, attention.scaling, threads,
        )  # fmt: skip
        seen[step.decoding :] = 0
        attend_pieces(seen, step, attention.layer, queries, scaling=attention.scaling, window=attention.window)
        return seen.view(count, -1)
