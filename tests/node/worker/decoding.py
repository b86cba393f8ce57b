"""Decoding rows of a step, made by hand."""

from __future__ import annotations

import torch

from node.worker.attention import DecodeGroup


def decoding_group(capacity: int, extents: list[int], positions: list[int]) -> DecodeGroup:
    """Rows 0, 1, ... of a step, in these extents of the first slab."""
    return DecodeGroup(
        base=0,
        capacity=capacity,
        rows=torch.arange(len(extents)),
        extents=torch.tensor(extents),
        positions=torch.tensor(positions),
        span=1 + max(extents),
        reach=1 + max(positions),
    )
