"""Keys and values of every token that was computed and may be looked at again.

1. Token t of layer l is `keys[l][:, t]`, [kv_heads, head_dim]. For each head, consecutive tokens of a sequence lie side by side:
   attention reads whole rows of memory.
2. The arena does not know whose a token is; `node.worker.cache.memory` does.
3. What nobody looks at is stale but finite: it is masked, and a masked NaN would still spread.
4. The last token belongs to nobody: rows that only fill a step up are written there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, kw_only=True)
class ArenaShape:
    """How large an arena is, in tokens, and what each layer keeps of a token."""

    layers: int
    tokens: int
    kv_heads: int
    head_dim: int

    def bytes_per_token(self, dtype: torch.dtype) -> int:
        """Memory for the keys and values of one token in all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * dtype.itemsize


def arena_shape(model: Any, tokens: int) -> ArenaShape:
    """What a model keeps of so many tokens."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    return ArenaShape(
        layers=config.num_hidden_layers,
        tokens=tokens,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
    )


class Arena:
    """Keys and values on one device; one token more than its shape says, the scrap."""

    def __init__(self, shape: ArenaShape, *, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        self.scrap = shape.tokens
        size = (shape.layers, shape.kv_heads, shape.tokens + 1, shape.head_dim)
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy consecutive tokens; the two ranges may overlap."""
        for tensor in (self.keys, self.values):
            for layer in tensor:
                layer[:, target : target + length] = layer[:, source : source + length].clone()

    def save(self, source: int, places: Sequence[int]) -> None:
        """Copy consecutive tokens from `source` on to these places."""
        index = torch.tensor(places, dtype=torch.long, device=self.keys.device)
        for tensor in (self.keys, self.values):
            tensor[:, :, index] = tensor[:, :, source : source + len(places)]

    def restore(self, places: Sequence[int], target: int) -> None:
        """Copy the tokens at these places to `target` and what follows it."""
        index = torch.tensor(places, dtype=torch.long, device=self.keys.device)
        for tensor in (self.keys, self.values):
            tensor[:, :, target : target + len(places)] = tensor[:, :, index]

    def clear(self, start: int = 0, length: int | None = None) -> None:
        """Zero consecutive tokens, or all: needed after a computation that may have left NaN behind."""
        end = None if length is None else start + length
        for tensor in (self.keys, self.values):
            tensor[:, :, start:end].zero_()
