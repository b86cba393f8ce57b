"""How fast a device's memory is: `python -m tests.bench.bandwidth cuda:0` prints bytes per second, read and written together."""

from __future__ import annotations

import statistics
import sys
import time

import torch

SIZE = 1 << 30
COPIES = 20


def bandwidth(device: str, *, size: int = SIZE) -> float:
    """The median of some copies within the device, each of `size` bytes that are read and written once."""
    source = torch.empty(size, dtype=torch.uint8, device=device).zero_()
    target = torch.empty_like(source)
    return 2 * size / statistics.median(_seconds(source, target) for _ in range(COPIES))


def _seconds(source: torch.Tensor, target: torch.Tensor) -> float:
    _wait(source.device)
    begun = time.perf_counter()
    target.copy_(source)
    _wait(source.device)
    return time.perf_counter() - begun


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    print(bandwidth(sys.argv[1]))
