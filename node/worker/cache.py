"""The KV cache: one slot of fixed length for each running sequence.

1. Slot s of layer l is `keys[l][s]`, [kv_heads, length, head_dim]; position p of a sequence lies at index p of its slot.
2. What lies behind a sequence's own length is stale but finite: it is masked, and a masked NaN would still spread.
3. The cache does not know who owns a slot; the scheduler does. A copied slot may be used for another sequence with the same
   beginning, which is all that sharing prefixes needs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class CacheShape:
    """How large a cache is. `length` in tokens per slot."""

    layers: int
    slots: int
    kv_heads: int
    length: int
    head_dim: int

    def bytes(self, dtype: torch.dtype) -> int:
        """Memory for keys and values together."""
        return 2 * self.layers * self.slots * self.kv_heads * self.length * self.head_dim * dtype.itemsize


class SlotCache:
    """Keys and values of all slots on one device."""

    def __init__(self, shape: CacheShape, *, dtype: torch.dtype, device: torch.device) -> None:
        self.shape = shape
        size = (shape.layers, shape.slots, shape.kv_heads, shape.length, shape.head_dim)
        self.keys = torch.zeros(size, dtype=dtype, device=device)
        self.values = torch.zeros(size, dtype=dtype, device=device)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot into another."""
        for tensor in (self.keys, self.values):
            tensor[:, target, :, :length] = tensor[:, source, :, :length]

    def clear(self, slot: int | None = None) -> None:
        """Zero one slot, or all: needed after a computation that may have left NaN behind."""
        for tensor in (self.keys, self.values):
            (tensor if slot is None else tensor[:, slot]).zero_()
