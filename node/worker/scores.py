"""Attention with scores that torch's own function does not know: soft caps and sinks.

1. A soft cap bends scores before the mask is laid over them; a sink is one more score per head, of a token that has no value.
2. The softmax is computed in float32, whatever the model's dtype.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import scaled_dot_product_attention

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Rules:
    """How one layer looks at what it may see. `scaling` None is by the size of a head; `sinks` has one score per head."""

    scaling: float | None = None
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def plain(self) -> bool:
        """Torch's own function computes it."""
        return self.softcap is None and self.sinks is None

    def scale(self, size: int) -> float:
        """What scores are multiplied with, for heads of this size."""
        return size**-0.5 if self.scaling is None else self.scaling

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
        """Query [batch, groups, rows, dim]; `mask` is True where a row may look, or added to the scores; None:
        every row looks up to itself.

        `sinks` are taken in the order of the query's heads, which stand in `groups`, or in `groups` and `rows`.
        """
        if self.plain:
            return scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None, scale=self.scaling)
        scores = torch.matmul(query, key.transpose(-1, -2)).float() * self.scale(query.shape[-1])
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        if mask is None:
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
        if self.sinks is not None:
            scores = torch.cat([scores, self._sink_column(scores)], dim=-1)
        shares = scores.softmax(-1)[..., : key.shape[-2]]
        return torch.matmul(shares.to(value.dtype), value)

    def _sink_column(self, scores: Tensor) -> Tensor:
        assert self.sinks is not None
        batch, groups, rows, _ = scores.shape
        return self.sinks.float().view(1, groups, -1, 1).expand(batch, groups, rows, 1)
