"""Runs a model over whole inputs and pools what comes out. No cache, no slots: an input is computed once and forgotten."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from mesh.vectors import pack
from node.worker.attention import NAME

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from node.worker.embedding.pooling import Pooling


class Embedder:
    """One model. A causal one may be in use by an engine too, as long as both compute in one thread."""

    def __init__(self, model: Any, pooling: Pooling) -> None:
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
        lengths = torch.tensor([len(one) for one in inputs], device=self.device)
        longest = int(lengths.max())
        ids = torch.tensor([[*one, *[self._padding] * (longest - len(one))] for one in inputs], device=self.device)
        mask = (torch.arange(longest, device=self.device) < lengths[:, None]).long()
        with torch.inference_mode(), self._own():
            extra = {"use_cache": False} if self._takes_cache else {}
            hidden = self._body(input_ids=ids, attention_mask=mask, **extra).last_hidden_state
            pooled = self.pooling.pool(hidden, lengths).cpu()
            return [pack(self.pooling.finish(*each).tolist()) for each in zip(pooled, dimensions, strict=True)]

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
