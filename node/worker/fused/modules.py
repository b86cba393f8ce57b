"""Linear modules of any model, with weights that were packed or rounded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from node.worker.fused.linear import Own

if TYPE_CHECKING:
    from torch import Tensor

    from node.worker.fused.linear import Products


class PackedLinear(nn.Module):
    """Stands in for `nn.Linear`. `weight` is an empty tensor that still tells the type and device."""

    def __init__(self, linear: nn.Linear, products: Products) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)
        self._product = products.linear(linear.weight, linear.bias)

    def forward(self, rows: Tensor) -> Tensor:
        """The product, for rows in any number of dimensions."""
        return self._product(rows.reshape(-1, self.in_features)).view(*rows.shape[:-1], self.out_features)


def pack(model: nn.Module, products: Products | None = None) -> None:
    """Put packed modules in place of the linear ones. Raises nothing, and touches no class derived from `nn.Linear`."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if type(child) is nn.Linear:
                setattr(module, name, PackedLinear(child, products or Own()))
