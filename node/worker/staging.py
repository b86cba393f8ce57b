"""How the numbers of a step get to the device."""

from __future__ import annotations

from itertools import accumulate, chain
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor


class Staging:
    """To one device. `together`: in one copy that nobody waits for; on the CPU there is nothing to copy to."""

    def __init__(self, device: torch.device) -> None:
        self.together = device.type != "cpu"
        self._device = device

    def send(self, *lists: list[int]) -> list[Tensor]:
        """Each list as a tensor there, int64."""
        if not self.together:
            return [torch.tensor(numbers, dtype=torch.long) for numbers in lists]
        # Pinned memory is taken anew for each step: torch gives it to nobody else before the copy is through.
        packed = torch.tensor(list(chain(*lists)), dtype=torch.long, pin_memory=self._device.type == "cuda")
        sent = packed.to(self._device, non_blocking=True)
        ends = list(accumulate(map(len, lists)))
        return [sent[end - len(numbers) : end] for end, numbers in zip(ends, lists, strict=True)]
