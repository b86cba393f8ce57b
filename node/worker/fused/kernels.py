"""What a decoder computes between its products: norms, and attention from the heads that a projection made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from node.worker.attention import attend, attend_written
from node.worker.native.compiler import Unavailable
from node.worker.native.kernels import functions

if TYPE_CHECKING:
    from torch import Tensor

    from node.worker.attention import StepContext


@dataclass(frozen=True, kw_only=True)
class Heads:
    """A projection makes `queries` heads, then as many of keys as of values: `keys` each; all are of one size."""

    queries: int
    keys: int
    size: int

    @property
    def turned(self) -> int:
        """Those of queries and keys."""
        return self.queries + self.keys


@dataclass(frozen=True, kw_only=True)
class Attention:
    """That of one layer. `norm` [turned, size] scales normalised heads, where there is such a norm."""

    layer: int
    heads: Heads
    norm: Tensor | None
    epsilon: float
    scaling: float
    window: int | None


@dataclass(frozen=True)
class Turn:
    """How each row's heads are rotated, [rows, 1, size]: by `x * cosines + rolled(x) * sines`, the sines with their signs."""

    cosines: Tensor
    sines: Tensor


class Kernels(Protocol):
    """All rows are of the type and on the device that the kernels were made for."""

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """Rows [rows, dim] divided by their root mean square, times the weight [dim]."""
        ...

    def attend(self, every: Tensor, attention: Attention, turn: Turn, step: StepContext) -> Tensor:
        """From what the projection made [rows, heads * size] to what the queries saw [rows, queries * size]."""
        ...


class TorchKernels:
    """By torch, on any device. See Kernels."""

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """In float32, then scaled in the rows' own type, as the modules do it; torch's function takes many times as long."""
        wide = rows.to(torch.float32, copy=True)
        scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).square_().div_(rows.shape[-1]).add_(epsilon).rsqrt_()
        return wide.mul_(scale).to(rows.dtype).mul_(weight)

    def attend(self, every: Tensor, attention: Attention, turn: Turn, step: StepContext) -> Tensor:
        """See Kernels."""
        heads = attention.heads
        every = every.view(len(every), -1, heads.size)
        turned, values = every[:, : heads.turned], every[:, heads.turned :]
        if attention.norm is not None:
            turned = self.norm(turned, attention.norm, attention.epsilon)
        turned = torch.addcmul(turned * turn.cosines, turned.roll(heads.size // 2, -1), turn.sines)
        queries, keys = turned[:, : heads.queries], turned[:, heads.queries :]
        seen = attend(step, attention.layer, queries, keys, values, scaling=attention.scaling, window=attention.window)
        return seen.reshape(len(every), -1)


class NativeKernels:
    """In C, for one type and such heads, on the CPU. See Kernels. Raises Unavailable."""

    def __init__(self, dtype: torch.dtype, heads: Heads) -> None:
        self._functions = functions(dtype)
        if not self._functions.suits(heads.queries, heads.keys, heads.size):
            raise Unavailable(f"there are no kernels for {heads}")

    def norm(self, rows: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """See Kernels."""
        return self._functions.norm(rows, weight, epsilon)

    def attend(self, every: Tensor, attention: Attention, turn: Turn, step: StepContext) -> Tensor:
        """See Kernels."""
        heads, layer = attention.heads, attention.layer
        keys, values = step.arena.keys[layer], step.arena.values[layer]
        every = every.view(len(every), -1, heads.size)
        queries = self._functions.turn(
            every, heads.queries, keys, values, attention.norm, turn.cosines, turn.sines, step.places, attention.epsilon
        )
        seen = attend_written(step, layer, queries, scaling=attention.scaling, window=attention.window)
        return seen.view(len(every), -1)
