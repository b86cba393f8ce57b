"""The kernels in C against torch's, and rows against themselves in other company."""

from __future__ import annotations

import pytest
import torch

from node.worker import attention as attention_module
from node.worker.attention import Piece, StepContext
from node.worker.cache.arena import Arena, ArenaShape
from node.worker.fused.kernels import Attention, Heads, Kernels, NativeKernels, TorchKernels, Turn
from node.worker.native.compiler import Unavailable
from node.worker.native.kernels import LARGEST_HEAD, MOST_SHARED
from tests.node.worker.decoding import decoding_group

CAPACITY = 256
EXTENTS = [4, 0, 7, 2, 5]
POSITIONS = [130, 0, 63, 64, 255]
PIECE = 6
"""Tokens of a prompt, at the end of the step; the sequence lies behind the others, and some of it is there already."""
PAST = 9
BOUND = {torch.float32: 1e-5, torch.bfloat16: 0.03}
both_types = pytest.mark.parametrize("dtype", list(BOUND), ids=["float32", "bfloat16"])
SHAPES = [Heads(queries=6, keys=2, size=64), Heads(queries=4, keys=4, size=8), Heads(queries=16, keys=1, size=128)]
SHAPES += [Heads(queries=2, keys=1, size=80), Heads(queries=2, keys=2, size=LARGEST_HEAD)]


def native(dtype: torch.dtype, heads: Heads) -> NativeKernels:
    try:
        return NativeKernels(dtype, heads)
    except Unavailable as reason:
        pytest.skip(str(reason))


def numbers(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def step(heads: Heads, dtype: torch.dtype, rows: list[int], *, piece: bool) -> StepContext:
    """These of the decoding rows, perhaps a piece of a prompt behind them, and a row of nobody."""
    shape = ArenaShape(layers=1, tokens=9 * CAPACITY, kv_heads=heads.keys, head_dim=heads.size)
    arena = Arena(shape, dtype=dtype, device=torch.device("cpu"))
    arena.keys.copy_(numbers(*arena.keys.shape, seed=5, dtype=dtype))
    arena.values.copy_(numbers(*arena.values.shape, seed=6, dtype=dtype))
    extents, positions = [EXTENTS[row] for row in rows], [POSITIONS[row] for row in rows]
    places = [CAPACITY * extent + position for extent, position in zip(extents, positions, strict=True)]
    group = decoding_group(CAPACITY, extents, positions)
    pieces = [Piece(8 * CAPACITY, len(rows), PIECE, PAST)] if piece else []
    if piece:
        places += range(8 * CAPACITY + PAST, 8 * CAPACITY + PAST + PIECE)
        positions = positions + list(range(PAST, PAST + PIECE))
    return StepContext(
        arena=arena,
        places=torch.tensor([*places, arena.scrap]),
        positions=torch.tensor([*positions, 0]),
        groups=[group],
        pieces=pieces,
    )


def turn_at(positions: torch.Tensor, size: int, dtype: torch.dtype) -> Turn:
    angles = positions[:, None] * torch.linspace(1, 0.01, size // 2)
    return Turn(
        torch.cat([angles.cos()] * 2, -1)[:, None].to(dtype),
        torch.cat([-angles.sin(), angles.sin()], -1)[:, None].to(dtype),
    )


def attended(
    kernels: Kernels, heads: Heads, dtype: torch.dtype, rows: list[int], *, window: int | None = None, normed: bool = True,
    piece: bool = False,
) -> tuple[torch.Tensor, Arena]:  # fmt: skip
    context = step(heads, dtype, rows, piece=piece)
    positions = context.positions
    every = numbers(len(EXTENTS) + PIECE + 1, (heads.queries + 2 * heads.keys) * heads.size, seed=7, dtype=dtype)
    chosen = every[rows + list(range(len(EXTENTS), len(EXTENTS) + len(positions) - len(rows)))]
    norm = numbers(heads.turned, heads.size, seed=8, dtype=dtype) if normed else None
    attention = Attention(layer=0, heads=heads, norm=norm, epsilon=1e-5, scaling=0.2, window=window)
    turn = turn_at(positions, heads.size, dtype)
    with torch.inference_mode():
        return kernels.attend(chosen.clone(), attention, turn, context), context.arena


@both_types
@pytest.mark.parametrize("heads", SHAPES, ids=str)
@pytest.mark.parametrize("window", [None, 5])
def test_attention_is_that_of_torch(heads: Heads, dtype: torch.dtype, window: int | None, threads: int) -> None:
    rows = list(range(len(EXTENTS)))
    for normed in (True, False):
        found, arena = attended(native(dtype, heads), heads, dtype, rows, window=window, normed=normed, piece=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention_module, "found", lambda _: None)
            expected, other = attended(TorchKernels(), heads, dtype, rows, window=window, normed=normed, piece=True)
        torch.testing.assert_close(found[:-1], expected[:-1], atol=BOUND[dtype], rtol=BOUND[dtype])
        for mine, theirs in ((arena.keys, other.keys), (arena.values, other.values)):
            torch.testing.assert_close(mine[:, :, :-1], theirs[:, :, :-1], atol=BOUND[dtype], rtol=BOUND[dtype])
        assert bool(found[-1].isfinite().all())


@both_types
@pytest.mark.parametrize("heads", SHAPES, ids=str)
def test_a_row_is_the_same_to_the_last_bit_in_any_company(heads: Heads, dtype: torch.dtype, threads: int) -> None:
    kernels = native(dtype, heads)
    together, _ = attended(kernels, heads, dtype, [3, 1, 4, 0, 2])
    for place, row in enumerate([3, 1, 4, 0, 2]):
        alone, _ = attended(kernels, heads, dtype, [row])
        assert torch.equal(alone[0], together[place])


def test_threads_change_no_bit() -> None:
    heads = SHAPES[0]
    kernels, found = native(torch.bfloat16, heads), []
    before = torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(attended(kernels, heads, torch.bfloat16, [0, 1, 2, 3, 4])[0])
    torch.set_num_threads(before)
    assert torch.equal(*found)


@both_types
@pytest.mark.parametrize("size", [7, 64, 768])
@pytest.mark.parametrize("count", [1, 40])
def test_a_norm_is_that_of_torch(dtype: torch.dtype, size: int, count: int, threads: int) -> None:
    rows, weight = numbers(count, 2 * size, seed=1, dtype=dtype)[:, :size], numbers(size, seed=2, dtype=dtype)
    found = native(dtype, SHAPES[0]).norm(rows, weight, 1e-6)
    torch.testing.assert_close(found, TorchKernels().norm(rows, weight, 1e-6), atol=1e-6, rtol=BOUND[dtype])


@both_types
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_stays_so_and_hurts_nobody_else(dtype: torch.dtype, value: float, threads: int) -> None:
    heads = SHAPES[0]
    kernels = native(dtype, heads)
    whole, _ = attended(kernels, heads, dtype, [0, 1, 2], normed=False)
    context = step(heads, dtype, [0, 1, 2], piece=False)
    positions = context.positions
    context.arena.keys[0, :, CAPACITY * EXTENTS[0] + 3] = value
    every = numbers(len(EXTENTS) + PIECE + 1, (heads.queries + 2 * heads.keys) * heads.size, seed=7, dtype=dtype)
    attention = Attention(layer=0, heads=heads, norm=None, epsilon=1e-5, scaling=0.2, window=None)
    turn = turn_at(positions, heads.size, dtype)
    broken = kernels.attend(every[[0, 1, 2, 5]], attention, turn, context)
    assert not bool(broken[0].isfinite().all())
    assert torch.equal(broken[1:3], whole[1:3])


@pytest.mark.parametrize(
    ("dtype", "heads"),
    [
        (torch.float16, SHAPES[0]),
        (torch.float32, Heads(queries=2, keys=1, size=LARGEST_HEAD + 2)),
        (torch.float32, Heads(queries=MOST_SHARED + 1, keys=1, size=64)),
        (torch.float32, Heads(queries=3, keys=2, size=64)),
        (torch.float32, Heads(queries=2, keys=2, size=63)),
    ],
    ids=str,
)
def test_what_does_not_fit_is_refused(dtype: torch.dtype, heads: Heads) -> None:
    with pytest.raises(Unavailable, match="no kernels for"):
        NativeKernels(dtype, heads)
