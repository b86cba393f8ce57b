"""y = x W^T + b for one weight, and what may follow in the same pass over y.

1. `Packed` lays the weight out once for oneDNN's kernels. Its operators are private to torch: `packs` looks whether they are here
   and compute what torch's public ones do, and `linear` makes a `Plain` where not.
2. A packed weight is a copy: whoever packs lets go of the original.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

_ROWS_HINT = 8
"""For how many rows oneDNN chooses the layout. Measured from 1 to 512 rows: there is no better one for all of them."""
_AGREEMENT = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}


class Linear(Protocol):
    """All of these take and give matrices of rows."""

    def __call__(self, rows: Tensor) -> Tensor:
        """The product."""
        ...

    def swish(self, rows: Tensor) -> Tensor:
        """The product times its own sigmoid."""
        ...

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """The product times `other`."""
        ...

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """The product plus `other`."""
        ...


class Products(Protocol):
    """What makes products of one kind."""

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """One for this weight [out, in], which it copies or keeps."""
        ...

    def gated(self, gate: nn.Linear, up: nn.Linear) -> Callable[[Tensor], Tensor]:
        """The product with `gate` times its own sigmoid, times the product with `up`."""
        ...


class Packed:
    """On the CPU, by oneDNN."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS_HINT)
        self.bias = None if bias is None else bias.detach()

    def __call__(self, rows: Tensor) -> Tensor:
        """See Linear."""
        return self._unary(rows, "none")

    def swish(self, rows: Tensor) -> Tensor:
        """See Linear."""
        return self._unary(rows, "swish")

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """See Linear."""
        return self._binary(rows, other, "mul")

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """See Linear."""
        return self._binary(rows, other, "add")

    def _unary(self, rows: Tensor, what: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, self._weight, self.bias, what, [], "")
        return product

    def _binary(self, rows: Tensor, other: Tensor, what: str) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, other, self._weight, self.bias, what)
        return product


class Plain:
    """On any device, by torch."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach()

    def __call__(self, rows: Tensor) -> Tensor:
        """See Linear."""
        return functional.linear(rows, self._weight, self._bias)

    def swish(self, rows: Tensor) -> Tensor:
        """See Linear."""
        return functional.silu(self(rows))

    def times(self, rows: Tensor, other: Tensor) -> Tensor:
        """See Linear."""
        return self(rows) * other

    def plus(self, rows: Tensor, other: Tensor) -> Tensor:
        """See Linear."""
        return self(rows) + other


def linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """The fastest one that computes this weight here."""
    return Packed(weight, bias) if weight.device.type == "cpu" and packs(weight.dtype) else Plain(weight, bias)


class Own:
    """Products with the weights as they are, the fastest ones that compute them here. See Products."""

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """See Products."""
        return linear(weight, bias)

    def gated(self, gate: nn.Linear, up: nn.Linear) -> Callable[[Tensor], Tensor]:
        """See Products."""
        return Gated(self.linear(gate.weight, gate.bias), self.linear(up.weight, up.bias))


@dataclass(frozen=True)
class Gated:
    """The product with `up`, times the product with `gate` and its sigmoid."""

    gate: Linear
    up: Linear

    def __call__(self, rows: Tensor) -> Tensor:
        """Of these rows."""
        return self.up.times(rows, self.gate.swish(rows))


@functools.cache
def packs(dtype: torch.dtype) -> bool:
    """Whether `Packed` works for this type here."""
    if dtype not in _AGREEMENT:
        return False
    source = torch.Generator().manual_seed(1)
    weight, rows, other, bias = (torch.randn(size, generator=source).to(dtype) for size in ((48, 32), (5, 32), (5, 48), (48,)))
    try:
        with torch.inference_mode():
            found, expected = (_every(kind(weight, bias), rows, other) for kind in (Packed, Plain))
    # A private operator may be missing, take other arguments, or not know this type.
    except (AttributeError, RuntimeError, TypeError):
        return False
    return bool(((found - expected).abs() <= _AGREEMENT[dtype] * (1 + expected.abs())).all())


def _every(kind: Any, rows: Tensor, other: Tensor) -> Tensor:
    return torch.stack([kind(rows), kind.swish(rows), kind.times(rows, other), kind.plus(rows, other)]).float()
