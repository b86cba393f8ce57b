"""For models that slot attention cannot do exactly: transformers' own `generate`, one sequence at a time.

Recurrent and hybrid layers, and attention of unknown kinds, keep their state in the model's own cache, whatever that is.
`generate` computes the prompt; the next steps go on from the state that it returned. Where that was found not to give what
computing everything again gives (`keeps_state` False), everything is computed again: slow and right.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch

from node.worker.cache.extents import Extents
from node.worker.cache.memory import Memory, Nowhere
from node.worker.cache.radix import RadixCache

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from node.worker.scheduler import Share


class GenerateRunner:
    """One slot; a prompt is computed whole."""

    batching = False
    slots = 1

    def __init__(self, model: Any, context_length: int) -> None:
        self.context_length = context_length
        room = Extents(slab=context_length, slabs=1, least=context_length)
        self.memory = Memory(room, RadixCache(start=context_length, pool=0), Nowhere())
        self.keeps_state = True
        self.device: torch.device = model.device
        self._model = model
        # Where `generate` returns the state is always the same; what the model calls it is not.
        recurrent = "cache_params" in inspect.signature(model.forward).parameters
        self._state_name = "cache_params" if recurrent else "past_key_values"
        self._state: dict[str, Any] = {}

    def order(self, shares: Sequence[Share]) -> Sequence[int]:
        """See Runner."""
        return range(len(shares))

    def run(self, shares: Sequence[Share]) -> Tensor:
        """See `node.worker.runner.Runner`."""
        (share,) = shares
        assert share.completes
        ids = torch.tensor([share.sequence.tokens], device=self._model.device)
        if share.sequence.computed and self._state:
            return self._go_on(ids[:, share.sequence.computed :])
        return self._start(ids)

    def _start(self, ids: Tensor) -> Tensor:
        answer = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        self._state = {self._state_name: answer.past_key_values} if self.keeps_state else {}
        logits: Tensor = answer.logits[0]
        return logits

    def _go_on(self, ids: Tensor) -> Tensor:
        answer = self._model(input_ids=ids, use_cache=True, **self._state)
        self._state = {self._state_name: answer[self._state_name]}
        logits: Tensor = answer.logits[:, -1]
        return logits

    def reset(self) -> None:
        """See Runner."""
        self.memory.rebuild()
        self._state = {}

    def relieve(self) -> None:
        """See Runner."""
        self._state = {}

    def rest(self) -> int:
        """See Runner. Its state is part of what the model computes, and nobody counted it."""
        self.reset()
        return 0

    def rise(self) -> None:
        """See Runner: `generate` takes memory as it goes."""
