"""Runs the model over one step's shares.

1. A step is one forward pass over one row of tokens; see `node.worker.attention` for its order.
2. The row, and the rows whose logits are computed, are padded to at least `LEAST_ROWS`: matrix kernels take another path for
   very few rows, and a result must not depend on who else is being served.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

from node.worker.attention import Piece, StepContext
from node.worker.cache import CacheShape, SlotCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from node.worker.scheduler import Share

LEAST_ROWS = 4


class Runner(Protocol):
    """What the engine needs of a model. Slots are the scheduler's; a runner only keeps what belongs to them."""

    slots: int
    context_length: int
    batching: bool

    def run(self, shares: Sequence[Share]) -> Tensor:
        """Compute the shares; the logits after each one that completes, in their order [completing, vocabulary]."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Move a sequence to another slot."""
        ...

    def clear(self, slot: int) -> None:
        """Erase a slot that may hold NaN."""
        ...

    def reset(self) -> None:
        """Forget all slots, after a step broke."""
        ...


class SlotRunner:
    """Many sequences at once over the slot cache."""

    batching = True

    def __init__(self, model: Any, shape: CacheShape) -> None:
        self.slots = shape.slots
        self.context_length = shape.length
        self.cache = SlotCache(shape, dtype=model.dtype, device=model.device)
        self._model = model
        self._device: torch.device = model.device

    def run(self, shares: Sequence[Share]) -> Tensor:
        """See Runner. The shares of a single token come first."""
        tokens: list[int] = []
        positions: list[int] = []
        completing: list[int] = []
        for share in shares:
            begin = share.sequence.computed
            tokens += share.sequence.tokens[begin : begin + share.count]
            positions += range(begin, begin + share.count)
            if share.completes:
                completing.append(len(tokens) - 1)
        padding = max(0, LEAST_ROWS - len(tokens))
        logits = self._forward(tokens + [0] * padding, positions + [0] * padding, self._context(shares), _padded(completing))
        return logits[: len(completing)]

    def _forward(self, tokens: list[int], positions: list[int], step: StepContext, keep: list[int]) -> Tensor:
        logits: Tensor = self._model(
            input_ids=torch.tensor([tokens], device=self._device),
            position_ids=torch.tensor([positions], device=self._device),
            use_cache=False,
            slot_step=step,
            logits_to_keep=torch.tensor(keep, device=self._device),
        ).logits
        self.windows = step.windows
        return logits[0]

    def _context(self, shares: Sequence[Share]) -> StepContext:
        singles = [share.sequence for share in shares if share.count == 1]
        pieces: list[Piece] = []
        row = len(singles)
        for share in shares[len(singles) :]:
            assert share.count > 1
            pieces.append(Piece(share.sequence.slot, row, share.count, share.sequence.computed))
            row += share.count
        return StepContext(
            cache=self.cache,
            decode_slots=torch.tensor([each.slot for each in singles], dtype=torch.long, device=self._device),
            decode_positions=torch.tensor([each.computed for each in singles], dtype=torch.long, device=self._device),
            span=1 + max((each.slot for each in singles), default=-1),
            reach=1 + max((each.computed for each in singles), default=-1),
            pieces=pieces,
        )

    def move(self, source: int, target: int, length: int) -> None:
        """See Runner."""
        self.cache.copy(source, target, length)

    def clear(self, slot: int) -> None:
        """See Runner."""
        self.cache.clear(slot)

    def reset(self) -> None:
        """See Runner."""
        self.cache.clear()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()


def _padded(completing: list[int]) -> list[int]:
    filler = completing[-1] if completing else 0
    return completing + [filler] * max(0, LEAST_ROWS - len(completing))
