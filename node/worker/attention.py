"""Attention over the arena, as a function that Hugging Face modelling code calls in each layer.

1. All tokens of a step stand in one row [1, tokens]: first one token for each decoding sequence, then the prompt pieces one after
   another, then padding. Linear layers see one matrix; only this function and `cuda.varlen` know where one sequence ends.
2. It writes the new keys and values into the arena and lets each token see its own sequence up to itself, and no further back
   than the layer's sliding window.
3. What it cannot do exactly (masks of the model's own, ...) it refuses by raising `Inexact`: never a nearly right answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface

from node.worker.cuda.varlen import Lengths, look
from node.worker.native.kernels import found
from node.worker.scores import Rules

if TYPE_CHECKING:
    from torch import Tensor

    from node.worker.cache.arena import Arena

NAME = "infermesh_slots"
"""The attention implementation's name in transformers. It has no mask function, so models build no mask."""

HARMLESS = frozenset(
    {
        "dropout",
        "is_causal",
        "position_ids",
        "use_cache",
        "output_attentions",
        "output_router_logits",
        "cache_position",
        "past_key_values",
    }
)
"""Arguments that models pass along and that change nothing here."""


class Inexact(Exception):
    """The model needs something that slot attention cannot do exactly. Run it on `node.worker.fallback`."""


@dataclass(frozen=True)
class Piece:
    """Consecutive tokens of one prompt in the step's row: they start at `row`; the sequence lies at `start` of the arena and
    `past` of it are there already."""

    start: int
    row: int
    count: int
    past: int
    _masks: dict[int | None, Tensor] = field(default_factory=dict, compare=False)

    def mask(self, window: int | None, start: int, like: Tensor) -> Tensor:
        """0 where a token may look, of those from `start` on, [count, past + count - start]; made once for all layers."""
        if window not in self._masks:
            end = self.past + self.count
            last = torch.arange(self.past, end, device=like.device)[:, None]
            self._masks[window] = _additive(_visible(torch.arange(start, end, device=like.device), last, window), like.dtype)
        return self._masks[window]


@dataclass(kw_only=True)
class DecodeGroup:
    """Decoding rows whose extents have one size and lie in one slab, which begins at `base`.

    For each of them: `rows` in the step, `extents` by number in the slab, `positions` in its own sequence.
    """

    base: int
    capacity: int
    rows: Tensor
    extents: Tensor
    positions: Tensor
    span: int
    """The first so many extents of the slab are looked at together."""
    reach: int
    """One more than the largest position."""
    _masks: dict[int | None, Tensor] = field(default_factory=dict)

    def view(self, tensor: Tensor) -> Tensor:
        """The extents of one layer's keys or values, [span, kv_heads, reach, head_dim]."""
        slab = tensor[:, self.base : self.base + self.span * self.capacity]
        return slab.view(len(tensor), self.span, self.capacity, -1)[:, :, : self.reach].transpose(0, 1)

    def mask(self, window: int | None, dtype: torch.dtype) -> Tensor:
        """0 where an extent's row may look, [span, 1, 1, reach]. Rows of nobody see position 0: softmax needs something."""
        if window not in self._masks:
            last = torch.zeros(self.span, 1, dtype=torch.long, device=self.extents.device)
            last[self.extents, 0] = self.positions
            seen = _visible(torch.arange(self.reach, device=last.device), last, window)
            self._masks[window] = _additive(seen, dtype)[:, None, None]
        return self._masks[window]


@dataclass(kw_only=True)
class StepContext:
    """Where the tokens of one step belong; every layer gets the same one."""

    arena: Arena
    places: Tensor
    """For each token of the row its place in the arena."""
    positions: Tensor
    """The same in its own sequence."""
    groups: list[DecodeGroup]
    pieces: list[Piece]
    lengths: list[Lengths] = field(default_factory=list)
    """Said instead of groups and pieces where attention of variable length looks at all rows; see `node.worker.cuda.varlen`."""
    windows: dict[int, int | None] = field(default_factory=dict)
    """The sliding window of each layer that was run."""

    @property
    def decoding(self) -> int:
        """How many rows, from the first on, are a single token of a sequence each."""
        return sum(len(group.rows) for group in self.groups)


def slot_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    slot_step: StepContext | None = None,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Query [1, heads, tokens, dim], key and value [1, kv_heads, tokens, dim], rotated already -> [1, tokens, heads, dim]."""
    assert slot_step is not None
    _refuse_unknown(module, attention_mask, s_aux, rest)
    rules = Rules(scaling=scaling, window=sliding_window, softcap=softcap, sinks=s_aux)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    return _attend(slot_step, module.layer_idx, query, key, value, rules)[None], None


def attend(
    step: StepContext, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float | None, window: int | None
) -> Tensor:
    """Query [tokens, heads, dim], key and value [tokens, kv_heads, dim], rotated already -> [tokens, heads, dim]."""
    return _attend(step, layer, query, key, value, Rules(scaling=scaling, window=window))


def attend_written(step: StepContext, layer: int, query: Tensor, *, scaling: float | None, window: int | None) -> Tensor:
    """The same when keys and values stand in the arena already."""
    return _attend_written(step, layer, query, Rules(scaling=scaling, window=window))


def _attend(step: StepContext, layer: int, query: Tensor, key: Tensor, value: Tensor, rules: Rules) -> Tensor:
    keys, values = step.arena.keys[layer], step.arena.values[layer]
    if not key.shape[1:] == value.shape[1:] == keys.shape[::2]:
        raise Inexact(f"layer {layer} has other key and value shapes than its configuration says")
    keys.index_copy_(1, step.places, key.transpose(0, 1))
    values.index_copy_(1, step.places, value.transpose(0, 1))
    return _attend_written(step, layer, query, rules)


def _attend_written(step: StepContext, layer: int, query: Tensor, rules: Rules) -> Tensor:
    step.windows[layer] = rules.window
    keys, values = step.arena.keys[layer], step.arena.values[layer]
    if step.lengths:
        if not rules.plain:
            raise Inexact(f"layer {layer} has soft caps or sinks, which attention of variable length does not know")
        return look(query, keys, values, step.lengths, scaling=rules.scaling, window=rules.window)
    out = query.new_zeros(query.shape)
    native = found(query.dtype) if rules.plain and query.device.type == "cpu" else None
    if native is not None and native.suits(query.shape[1], len(keys), query.shape[2]):
        scaling, window = rules.scale(query.shape[2]), rules.window
        native.look(out, query, keys, values, step.places, step.positions, count=step.decoding, window=window, scaling=scaling)
    else:
        for group in step.groups:
            out[group.rows] = _decode(query[group.rows], keys, values, group, rules)
    for piece in step.pieces:
        rows = slice(piece.row, piece.row + piece.count)
        out[rows] = _prefill(query[None, rows].transpose(1, 2), keys, values, piece, rules)[0].transpose(0, 1)
    return out


def _decode(query: Tensor, keys: Tensor, values: Tensor, group: DecodeGroup, rules: Rules) -> Tensor:
    """One call for all rows of a group [rows, heads, dim]; query heads that share a key head stand as rows of one matrix."""
    rows, heads, dim = query.shape
    kv_heads = keys.shape[0]
    spread = query.new_zeros(group.span, heads, dim)
    spread[group.extents] = query
    grouped = rules.attend(
        spread.view(group.span, kv_heads, heads // kv_heads, dim),
        group.view(keys),
        group.view(values),
        group.mask(rules.window, query.dtype),
    )
    return grouped.reshape(group.span, heads, dim)[group.extents].view(rows, heads, dim)


def _prefill(query: Tensor, keys: Tensor, values: Tensor, piece: Piece, rules: Rules) -> Tensor:
    """Query [1, heads, count, dim] -> the same."""
    end, window = piece.past + piece.count, rules.window
    start = 0 if window is None else max(0, piece.past + 1 - window)
    shared = query.shape[1] // keys.shape[0]
    key, value = (each[None, :, piece.start + start : piece.start + end] for each in (keys, values))
    alone = start == piece.past and (window is None or piece.count <= window)
    if query.device.type == "cpu" and rules.plain and not alone:
        # What came before is not copied: it may be a hundred times as long as the piece.
        rows = query.reshape(1, keys.shape[0], shared * piece.count, -1)
        return rules.attend(rows, key, value, piece.mask(window, start, query).repeat(shared, 1)).view(query.shape)
    # Repeated, not enable_gqa: of CUDA's fused kernels only some take grouped heads, and the others would fall back silently.
    key, value = (each.repeat_interleave(shared, 1) for each in (key, value))
    return rules.attend(query, key, value, None if alone else piece.mask(window, start, query))


def _visible(positions: Tensor, last: Tensor, window: int | None) -> Tensor:
    """True where the token at `last` (a column) may look at `positions` (a row)."""
    seen = positions <= last
    return seen if window is None else seen & (positions > last - window)


def _additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What attention adds to its scores. Made here once: from truth values, torch would make it again in every layer."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def _refuse_unknown(module: Any, mask: Tensor | None, sinks: Tensor | None, rest: dict[str, Any]) -> None:
    unknown = sorted(name for name, value in rest.items() if value is not None and name not in HARMLESS)
    if unknown:
        raise Inexact(f"attention takes {', '.join(unknown)}")
    if mask is not None:
        raise Inexact("attention takes a mask of the model's own")
    if sinks is None and getattr(module, "sinks", None) is not None:
        raise Inexact("attention has sinks that it does not pass on")
    if not getattr(module, "is_causal", True):
        raise Inexact("attention is not causal")


AttentionInterface.register(NAME, slot_attention)
