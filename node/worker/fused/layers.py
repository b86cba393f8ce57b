"""The layers of a decoder, and how a step's rows pass through them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from node.worker.attention import StepContext
    from node.worker.fused.kernels import Attention, Kernels, Turn
    from node.worker.fused.linear import Linear


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer's weights."""

    before_attention: Tensor
    projection: Linear
    attention: Attention
    output: Linear
    before_mlp: Tensor
    gated: Callable[[Tensor], Tensor]
    down: Linear


class Through(Protocol):
    """From the embeddings of a step's tokens [rows, dim] to what the last layer makes of them. They may be overwritten."""

    def __call__(self, rows: Tensor, turn: Turn, step: StepContext) -> Tensor:
        """All layers."""
        ...


class Layers:
    """One after the other, whatever computes them. See Through."""

    def __init__(self, layers: Sequence[Layer], kernels: Kernels, epsilon: float) -> None:
        self.layers = layers
        self.kernels = kernels
        self.epsilon = epsilon

    def __call__(self, rows: Tensor, turn: Turn, step: StepContext) -> Tensor:
        """See Through."""
        for layer in self.layers:
            every = layer.projection(self.kernels.norm(rows, layer.before_attention, self.epsilon))
            rows = layer.output.plus(self.kernels.attend(every, layer.attention, turn, step), rows)
            rows = layer.down.plus(layer.gated(self.kernels.norm(rows, layer.before_mlp, self.epsilon)), rows)
        return rows
