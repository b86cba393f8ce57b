"""A runner whose sequences may have adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from torch import Tensor

    from node.worker.cache.memory import Memory
    from node.worker.lora.layers import Selection
    from node.worker.runner import Runner
    from node.worker.scheduler import Share


class AdaptedRunner:
    """Another runner, told whose rows are whose. See `node.worker.runner.Runner`."""

    def __init__(self, runner: Runner, selection: Selection) -> None:
        self.slots = runner.slots
        self.context_length = runner.context_length
        self.batching = runner.batching
        self.memory: Memory = runner.memory
        self.device: torch.device = runner.device
        self._runner = runner
        self._selection = selection

    def order(self, shares: Sequence[Share]) -> Sequence[int]:
        """See Runner."""
        return self._runner.order(shares)

    def run(self, shares: Sequence[Share]) -> Tensor:
        """See Runner."""
        with self._selection.of([shares[number] for number in self.order(shares)], self.device):
            return self._runner.run(shares)

    def reset(self) -> None:
        """See Runner."""
        self._runner.reset()

    def relieve(self) -> None:
        """See Runner."""
        self._runner.relieve()

    def rest(self) -> int:
        """See Runner."""
        return self._runner.rest()

    def rise(self) -> None:
        """See Runner."""
        self._runner.rise()
