"""Attention of variable length as torch documents it, sequence by sequence: for machines without its kernel."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable


def varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seq_q: torch.Tensor,
    cu_seq_k: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None,
    window_size: tuple[int, int],
    enable_gqa: bool,
    seqused_k: torch.Tensor,
) -> torch.Tensor:
    """What the kernel checks is checked here too."""
    for told in (cu_seq_q, cu_seq_k, seqused_k):
        assert told.dtype == torch.int32
        assert told.is_contiguous()
    assert query.stride(-1) == key.stride(-1) == value.stride(-1) == 1
    assert len(cu_seq_q) == len(cu_seq_k) == len(seqused_k) + 1
    assert cu_seq_k.diff().min() >= 0
    assert cu_seq_k[-1] == len(key) == len(value)
    assert cu_seq_q[-1] == len(query)
    assert enable_gqa is (query.shape[1] != key.shape[1])
    shared = query.shape[1] // key.shape[1]
    out = torch.full_like(query, torch.nan)
    for (first, last), start, used in zip(pairwise(cu_seq_q.tolist()), cu_seq_k[:-1].tolist(), seqused_k.tolist(), strict=True):
        assert 0 < last - first <= max_q
        assert last - first <= used <= max_k
        assert start + used <= len(key)
        keys, values = (each[start : start + used].repeat_interleave(shared, 1) for each in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[first:last], keys) * (scale or query.shape[-1] ** -0.5)
        # The last query stands beside the last key.
        own = torch.arange(used - (last - first), used)[:, None]
        place = torch.arange(used)
        back, ahead = window_size
        hidden = torch.zeros(len(own), used, dtype=torch.bool)
        if back >= 0:
            hidden |= place < own - back
        if ahead >= 0:
            hidden |= place > own + ahead
        out[first:last] = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), values)
    return out


class Again:
    """Records for the CPU: plays by computing again, into the same memory."""

    def __init__(self, played: list[int], *, most: int = 1 << 20, wrong: float = 0.0) -> None:
        self._played, self._most, self._wrong = played, most, wrong

    def __call__(self, compute: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
        result = compute().clone()
        if len(result) > self._most:
            # As torch does it: what the recording says of its end hides why it ended.
            try:
                raise torch.OutOfMemoryError("CUDA out of memory")
            finally:
                raise RuntimeError("operation failed due to a previous error during capture")

        def play() -> None:
            self._played.append(len(result))
            result.copy_(compute() * (1 + self._wrong * torch.randn_like(result)))

        return play, result
