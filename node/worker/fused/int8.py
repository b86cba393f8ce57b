"""Linear layers whose weights are int8: half of bfloat16's memory, and half as much to read for each token.

1. Every output has a scale of its own, its largest weight is 127, and zero is zero.
2. What comes in is not rounded to 8 bits: its outliers would cost the other values of the row their digits. Each row becomes
   fixed-point numbers of 16 bits, whose upper and lower bytes are multiplied as rows of their own and put together afterwards.
3. Sums are integers: a row's result does not depend on the rows beside it, or on how many threads compute it.
4. oneDNN's operators are private to torch: `quantizes` looks whether they are here and compute what they should. Processors
   without VNNI would cut off large sums in silence, so the largest ones are in what it looks at.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

LARGEST = 127
_STEPS = LARGEST * 256
"""The largest fixed-point number."""
_MIDDLE = 128 * 257
"""What makes both bytes of every fixed-point number positive, zero being 128 in each."""
_ROWS = 4096
"""Rows of a weight that are rounded at once: each needs its floats twice."""
_AGREEMENT = 1e-3


class Int8:
    """See `node.worker.fused.linear.Linear`. The products are computed in float32 and have the type of the rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        rounded, self._scales = quantized(weight.detach())
        self._weight = torch.ops.onednn.qlinear_prepack(rounded, None)
        self._zeros = torch.zeros(len(rounded), dtype=torch.int32)
        self._bias = None if bias is None else bias.detach().float()

    def __call__(self, rows: Tensor) -> Tensor:
        """See Linear."""
        return self.product(rows).to(rows.dtype)

    def swish(self, rows: Tensor) -> Tensor:
        """See Linear."""
        return functional.silu(self.product(rows), inplace=True).to(rows.dtype)

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """See Linear."""
        return self.product(rows).mul_(other).to(rows.dtype)

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """See Linear."""
        return self.product(rows).add_(other).to(rows.dtype)

    def product(self, rows: Tensor) -> Tensor:
        """The product in float32."""
        largest = rows.abs().amax(-1, keepdim=True).float().clamp_min_(1e-30)
        # The half that is added makes cutting off rounding; 32 signed bits hold what 16 unsigned ones do.
        fixed = (rows * (_STEPS / largest)).add_(_MIDDLE + 0.5).to(torch.int32)
        halves = torch.cat([fixed.to(torch.uint8), (fixed >> 8).to(torch.uint8)])
        sums = torch.ops.onednn.qlinear_pointwise(
            halves, 1.0, 128, self._weight, self._scales, self._zeros, None, 1.0, 0, torch.float32, "none", [], ""
        )
        made = torch.add(sums[: len(rows)], sums[len(rows) :], alpha=256).mul_(largest.mul_(1 / _STEPS))
        return made if self._bias is None else made.add_(self._bias)


class Quantized:
    """Makes products with int8 weights; see `node.worker.fused.linear.Products`."""

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Int8:
        """See Products."""
        return Int8(weight, bias)

    def gated(self, gate: nn.Linear, up: nn.Linear) -> Callable[[Tensor], Tensor]:
        """See Products. One product for both: the rows are made fixed-point once."""
        biases: list[Tensor | None] = [gate.bias, up.bias]
        bias = None if biases[0] is None else torch.cat([each for each in biases if each is not None])
        both, size = Int8(torch.cat([gate.weight, up.weight]), bias), gate.out_features

        def made(rows: Tensor) -> Tensor:
            product = both.product(rows)
            return functional.silu(product[:, :size]).mul_(product[:, size:]).to(rows.dtype)

        return made


def quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The weight [out, in] in int8, and what to multiply each output's row by to have it back."""
    parts = [_quantized(weight[begin : begin + _ROWS]) for begin in range(0, len(weight), _ROWS)]
    return torch.cat([rounded for rounded, _ in parts]), torch.cat([scales for _, scales in parts])


def _quantized(weight: Tensor) -> tuple[Tensor, Tensor]:
    floats = weight.float()
    scales = floats.abs().amax(1).clamp_min_(1e-30).div_(LARGEST)
    return (floats / scales[:, None]).round_().to(torch.int8), scales


@functools.cache
def quantizes() -> bool:
    """Whether `Int8` works here."""
    source = torch.Generator().manual_seed(1)
    weight, rows = torch.randn(48, 256, generator=source), torch.randn(5, 256, generator=source)
    weight[0], rows[0] = 1.0, 1.0
    try:
        with torch.inference_mode():
            found = Int8(weight)(rows)
    # A private operator may be missing, take other arguments, or not know this processor.
    except (AttributeError, RuntimeError, TypeError):
        return False
    rounded, scales = quantized(weight)
    expected = rows @ (rounded * scales[:, None]).T
    return bool(((found - expected).abs() <= _AGREEMENT * (1 + expected.abs())).all())
