"""Decoding attention: a batch with holes between its extents gives each row what it gets alone."""

from __future__ import annotations

import pytest
import torch

from node.worker import attention
from node.worker.attention import StepContext, attend
from node.worker.cache.arena import Arena, ArenaShape
from tests.node.worker.decoding import decoding_group

HEADS, KV_HEADS, DIM, CAPACITY = 6, 2, 16, 32
# Out of order, with extents of nobody between them, and of many lengths.
EXTENTS = [4, 0, 7, 2, 5]
POSITIONS = [30, 0, 3, 17, 9]


@pytest.fixture(autouse=True, params=["C", "torch"])
def _kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "torch":
        monkeypatch.setattr(attention, "found", lambda _: None)


def step(dtype: torch.dtype, rows: slice) -> StepContext:
    source = torch.Generator().manual_seed(5)
    arena = Arena(
        ArenaShape(layers=1, tokens=8 * CAPACITY, kv_heads=KV_HEADS, head_dim=DIM), dtype=dtype, device=torch.device("cpu")
    )
    for tensor in (arena.keys, arena.values):
        tensor.copy_(torch.randn(tensor.shape, generator=source))
    extents, positions = EXTENTS[rows], POSITIONS[rows]
    group = decoding_group(CAPACITY, extents, positions)
    places = torch.tensor([CAPACITY * extent + place for extent, place in zip(extents, positions, strict=True)])
    return StepContext(arena=arena, places=places, positions=torch.tensor(positions), groups=[group], pieces=[])


def computed(dtype: torch.dtype, rows: slice, window: int | None, scaling: float | None) -> torch.Tensor:
    source = torch.Generator().manual_seed(6)
    count = len(EXTENTS)
    query, key, value = (torch.randn(count, heads, DIM, generator=source) for heads in (HEADS, KV_HEADS, KV_HEADS))
    chosen = [tensor.to(dtype)[rows] for tensor in (query, key, value)]
    return attend(step(dtype, rows), 0, *chosen, scaling=scaling, window=window).float()


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("scaling", [None, 0.3])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bfloat16", "float16", "float32"])
def test_many_rows_at_once_are_what_each_is_alone(dtype: torch.dtype, scaling: float | None, window: int | None) -> None:
    together = computed(dtype, slice(None), window, scaling)
    exact = computed(torch.float32, slice(None), window, scaling)
    torch.testing.assert_close(together, exact, atol=0.05, rtol=0)
    for row in range(len(EXTENTS)):
        alone = computed(dtype, slice(row, row + 1), window, scaling)
        torch.testing.assert_close(together[row : row + 1], alone, atol=0.05, rtol=0)
