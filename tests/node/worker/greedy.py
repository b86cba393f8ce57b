"""Comparing greedy ids with those of `generate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

MARGIN = 1e-4
COUNT = 24


def flips(expected: tuple[list[int], list[torch.Tensor]], ids: list[int]) -> int:
    """0 when equal, 1 when the first difference lies between two logits closer than the margin; else an error."""
    wanted, logits = expected
    if ids == wanted:
        return 0
    place = next(i for i, (a, b) in enumerate(zip(wanted, ids, strict=False)) if a != b)
    difference = float(logits[place][wanted[place]] - logits[place][ids[place]])
    assert difference <= MARGIN, f"token {place}: {ids[place]} instead of {wanted[place]}, {difference} apart"
    return 1
