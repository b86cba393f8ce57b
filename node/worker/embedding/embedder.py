"""Runs a model over whole inputs and pools what comes out. No cache, no slots: an input is computed once and forgotten."""

from __future__ import annotations

import inspect
import itertools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import torch

from mesh.vectors import pack
from node.worker.attention import NAME, Piece, StepContext
from node.worker.cache.arena import Arena, arena_shape

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from node.worker.embedding.pooling import Pooling


class Hidden(Protocol):
    """What computes a model whose modules gave their weights away."""

    def __call__(self, tokens: Tensor, step: StepContext, keep: Tensor) -> Tensor:
        """The states before the head, of the tokens that `keep` numbers [keep, dim]; see `node.worker.runner.Forward`."""
        ...


class Embedder:
    """One model. A causal one may be in use by an engine too, as long as both compute in one thread."""

    def __init__(self, model: Any, pooling: Pooling, *, hidden: Hidden | None = None) -> None:
        """With `hidden` only the last token's state can be pooled."""
        assert hidden is None or pooling.mode == "last"
        self._hidden = hidden
        self.pooling = pooling
        self.device: torch.device = model.device
        self._body = getattr(model, "base_model", model)
        config = model.config.get_text_config()
        self.dimensions = int(config.hidden_size)
        self._own_attention = "sdpa" if getattr(model, "_supports_sdpa", False) else "eager"
        self._model = model
        self._padding = int(getattr(config, "pad_token_id", None) or 0)
        self._takes_cache = "use_cache" in inspect.signature(self._body.forward).parameters

    def embed(self, inputs: Sequence[Sequence[int]], dimensions: Sequence[int | None]) -> list[bytes]:
        """One vector for each input, packed. `dimensions` for each: None leaves them all."""
        if self._hidden is not None:
            return self._from_steps(self._hidden, inputs, dimensions)
        lengths = torch.tensor([len(one) for one in inputs], device=self.device)
        longest = int(lengths.max())
        ids = torch.tensor([[*one, *[self._padding] * (longest - len(one))] for one in inputs], device=self.device)
        mask = (torch.arange(longest, device=self.device) < lengths[:, None]).long()
        with torch.inference_mode(), self._own():
            extra = {"use_cache": False} if self._takes_cache else {}
            hidden = self._body(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
            return self._finished(self.pooling.pool(hidden, lengths), dimensions)

    def _finished(self, pooled: Tensor, dimensions: Sequence[int | None]) -> list[bytes]:
        return [pack(self.pooling.finish(*each).tolist()) for each in zip(pooled.cpu(), dimensions, strict=True)]

    def _from_steps(self, hidden: Hidden, inputs: Sequence[Sequence[int]], dimensions: Sequence[int | None]) -> list[bytes]:
        """As one step of prompts over an arena of its own."""
        ends = list(itertools.accumulate(map(len, inputs)))
        pieces = [Piece(end - len(one), end - len(one), len(one), 0) for one, end in zip(inputs, ends, strict=True)]
        arena = Arena(arena_shape(self._model, ends[-1]), dtype=self._model.dtype, device=self.device)
        places = torch.arange(ends[-1], device=self.device)
        positions = torch.tensor([position for one in inputs for position in range(len(one))], device=self.device)
        step = StepContext(arena=arena, places=places, positions=positions, groups=[], pieces=pieces)
        tokens = torch.tensor([token for one in inputs for token in one], device=self.device)
        with torch.inference_mode():
            states = hidden(tokens, step, torch.tensor(ends, device=self.device) - 1)
            return self._finished(states.float(), dimensions)

    @contextmanager
    def _own(self) -> Iterator[None]:
        """Slot attention knows steps only; the model's own takes whole inputs."""
        slots = self._model.config._attn_implementation == NAME
        if slots:
            self._model.set_attn_implementation(self._own_attention)
        try:
            yield
        finally:
            if slots:
                self._model.set_attn_implementation(NAME)
