"""Where a model's weights are: on its device, or in the host's memory while the model sleeps.

1. Every tensor that the model's modules own moves, those of adapters included, as `torch.nn.Module.to` does it.
2. A model on the CPU has its weights in the host's memory already, and its packed ones are the only ones there are: they stay.
"""

from __future__ import annotations

import gc
from typing import Any

import torch

from node.worker.heap import give_back


class Weights:
    """Of one model; `device` is where it computes."""

    def __init__(self, model: Any, device: torch.device) -> None:
        self.device = device
        self._model = model

    @property
    def moves(self) -> bool:
        """Whether sleeping takes them off the device."""
        return self.device.type != "cpu"

    def to_host(self) -> None:
        """Into the host's memory; the device has nothing of them afterwards."""
        if self.moves:
            self._model.to("cpu")
        self.collect()

    def to_device(self) -> None:
        """Back again. Raises what torch raises where there is no room for them any more."""
        if self.moves:
            self._model.to(self.device)

    def collect(self) -> None:
        """Give back what nobody holds any more."""
        gc.collect()
        give_back()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
