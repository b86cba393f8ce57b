"""For models that slot attention cannot do exactly: transformers' own `generate`, one sequence at a time.

Soft caps, attention sinks, recurrent and hybrid layers keep their state in the model's own cache, whatever that is.
Each step asks `generate` for one more token's logits and goes on from the cache that it returned.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

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
        self._model = model
        self._state: dict[str, Any] = {}

    def run(self, shares: Sequence[Share]) -> Tensor:
        """See `node.worker.runner.Runner`."""
        (share,) = shares
        assert share.completes
        if share.sequence.computed == 0:
            self._state = {}
        ids = torch.tensor([share.sequence.tokens], device=self._model.device)
        answer = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=1,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
            **self._state,
        )
        self._state = {name: answer[name] for name in ("past_key_values", "cache_params") if answer.get(name) is not None}
        logits: Tensor = answer.logits[0]
        return logits

    def move(self, source: int, target: int, length: int) -> None:  # noqa: ARG002 - there is one slot
        """Never happens with one slot."""
        raise AssertionError("one slot cannot move")

    def clear(self, slot: int) -> None:  # noqa: ARG002 - there is one slot
        """See Runner."""
        self.reset()

    def reset(self) -> None:
        """See Runner."""
        self._state = {}
