"""Attention over the arena by torch's kernel for sequences of many lengths, on GPUs of NVIDIA.

1. Nothing that is cached is copied: a sequence's keys and values are read where they lie, from its extent's beginning on.
2. Sequences stand in the order of their places in the arena: what the kernel is told of where they begin must not fall.
3. Single tokens are looked at in one call, and pieces of prompts in another. Where every sequence has one query and no window,
   the kernel makes one matrix of the heads that share keys, and shares out a long past among many processors; and what a token
   gets does not depend on whether somebody's prompt is in the step.
4. The kernel divides its work by the longest sequence that it is told of: that is always the whole context.
5. Rows of nobody are sequences of one token, the scrap.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16)
LARGEST_HEAD = 256
HEAD_STEP = 8
OLDEST = (8, 0)
"""The first generation of processors that the kernel runs on."""


class Member(NamedTuple):
    """`rows` of a step are the last of the `length` tokens that lie at `start` of the arena."""

    start: int
    rows: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """`rows` consecutive rows of a step: sequences one after another, of which none has more than `longest` rows.

    `queries` and `starts` [sequences + 1]: where each begins, in these rows and in the arena, and an end. `used` [sequences]: how
    many tokens from there on it has. All are int32.
    """

    rows: int
    longest: int
    context: int
    queries: Tensor
    starts: Tensor
    used: Tensor


def numbers(members: Sequence[Member], end: int) -> tuple[list[int], list[int], list[int]]:
    """The three lists of Lengths. `end`: of the arena, the scrap included."""
    queries = [0, *accumulate(member.rows for member in members)]
    return queries, [*(member.start for member in members), end], [member.length for member in members]


def look(
    query: Tensor, keys: Tensor, values: Tensor, parts: Sequence[Lengths], *, scaling: float | None, window: int | None
) -> Tensor:
    """Query [tokens, heads, dim]; keys and values of one layer [kv_heads, arena, dim] -> what each row saw, as the query."""
    keys, values = keys.transpose(0, 1), values.transpose(0, 1)
    cut = torch.split(query, [part.rows for part in parts])
    seen = [_seen(rows, keys, values, part, scaling=scaling, window=window) for rows, part in zip(cut, parts, strict=True)]
    return seen[0] if len(seen) == 1 else torch.cat(seen)


def _seen(query: Tensor, keys: Tensor, values: Tensor, part: Lengths, *, scaling: float | None, window: int | None) -> Tensor:
    back = -1 if window is None else window - 1
    # A single token may look at all there is of its sequence. Told so, and not "up to itself", the kernel takes its faster way.
    ahead = -1 if part.longest == 1 and window is None else 0
    found: Tensor = kernel()(
        query,
        keys,
        values,
        part.queries,
        part.starts,
        part.longest,
        part.context,
        scale=scaling,
        window_size=(back, ahead),
        enable_gqa=query.shape[1] != keys.shape[1],
        seqused_k=part.used,
    )
    return found


@functools.cache
def kernel() -> Callable[..., Any]:
    """Torch's function. Importing it takes a second, and many machines never need it."""
    from torch.nn.attention.varlen import varlen_attn

    # It writes a line for each call.
    logging.getLogger(varlen_attn.__module__).setLevel(logging.WARNING)
    return varlen_attn


def refusal(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """Why there is no such kernel for this; None where there should be one."""
    if dtype not in DTYPES:
        return f"it is for float16 and bfloat16, not {str(dtype).removeprefix('torch.')}"
    if head_dim % HEAD_STEP or head_dim > LARGEST_HEAD:
        return f"heads of {head_dim} are not a multiple of {HEAD_STEP} up to {LARGEST_HEAD}"
    if torch.version.hip is not None:
        return "it is for GPUs of NVIDIA"
    if torch.cuda.get_device_capability(device) < OLDEST:
        return f"it needs compute capability {OLDEST[0]}.{OLDEST[1]}"
    return None
