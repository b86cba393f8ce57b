"""Linear layers to which rows of a step add what their adapters say.

1. A step's rows may belong to different adapters, or to none; each adapter that is in the step costs two small products a layer.
2. Rows are numbered over everything but the last dimension. Only layers that see every row of a step can be adapted: the head
   for the vocabulary sees some of them, and is refused.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from node.worker.lora.adapter import Adapter, Pair
    from node.worker.scheduler import Share


class Selection:
    """Which rows of the present step belong to which adapter, by number from 1 on. Empty outside of steps."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, Tensor]] = []

    @contextmanager
    def of(self, shares: Sequence[Share], device: torch.device) -> Iterator[None]:
        """For the time of one step over these shares, in the order of their rows."""
        rows: dict[int, list[int]] = {}
        begin = 0
        for share in shares:
            if share.sequence.adapter:
                rows.setdefault(share.sequence.adapter, []).extend(range(begin, begin + share.count))
            begin += share.count
        self.rows = [(number, torch.tensor(each, device=device)) for number, each in sorted(rows.items())]
        try:
            yield
        finally:
            self.rows = []


class AdaptedLinear(nn.Module):
    """A linear layer and the pairs of those adapters that change it."""

    def __init__(self, layer: nn.Linear, selection: Selection) -> None:
        super().__init__()
        self.layer = layer
        self._selection = selection
        self._pairs: dict[int, Pair] = {}

    def add(self, number: int, pair: Pair) -> None:
        """Let the adapter with this number change the layer."""
        self._pairs[number] = pair

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Whatever moves the module moves what its adapters say as well."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has no types here
        self._pairs = {number: type(pair)(fn(pair.down), fn(pair.up)) for number, pair in self._pairs.items()}
        return self

    def forward(self, rows: Tensor) -> Tensor:
        """Rows [..., in] -> [..., out]."""
        out: Tensor = self.layer(rows)
        for number, places in self._selection.rows:
            if (pair := self._pairs.get(number)) is not None:
                chosen = rows.reshape(-1, rows.shape[-1])[places]
                out.view(-1, out.shape[-1]).index_add_(0, places, chosen @ pair.down.T @ pair.up.T)
        return out


def attach(model: Any, adapters: Sequence[Adapter]) -> Selection:
    """Make a model's layers adaptable; the adapters are numbered from 1 on. Raises Misconfigured where one does not fit."""
    selection = Selection()
    head = model.get_output_embeddings()
    for number, adapter in enumerate(adapters, start=1):
        for name, pair in adapter.pairs.items():
            _adapted(model, head, adapter.name, name, pair, selection).add(number, _placed(pair, model))
    return selection


def _adapted(model: Any, head: Any, adapter: str, name: str, pair: Pair, selection: Selection) -> AdaptedLinear:
    parent, _, last = name.rpartition(".")
    try:
        owner = model.get_submodule(parent)
        layer = getattr(owner, last)
    except AttributeError:
        raise Misconfigured(f"the adapter {adapter} changes {name}, which the model lacks; it is for another model") from None
    inner = layer.layer if isinstance(layer, AdaptedLinear) else layer
    if type(inner) is not nn.Linear or inner is head:
        raise Misconfigured(f"the adapter {adapter} changes {name}, which is no linear layer inside; merge it into its model")
    if (pair.up.shape[0], pair.down.shape[1]) != tuple(inner.weight.shape):
        raise Misconfigured(f"the adapter {adapter} has another shape for {name} than the model; it is for another model")
    if layer is inner:
        layer = AdaptedLinear(inner, selection)
        setattr(owner, last, layer)
    assert isinstance(layer, AdaptedLinear)
    return layer


def _placed(pair: Pair, model: Any) -> Pair:
    return type(pair)(pair.down.to(model.device, model.dtype), pair.up.to(model.device, model.dtype))
