"""Our engine in this process, driven as a worker drives it, with a clock on every token."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mesh.messages.inference import Delta, Fail, InferenceRequest
from node.worker import loader
from node.worker.cores import Cores
from node.worker.device import default_threads
from node.worker.engine import Engine, Limits
from node.worker.fused.way import modules
from node.worker.heap import keep_freed
from node.worker.loader import Options, load

if TYPE_CHECKING:
    from collections.abc import Sequence

SLOTS = 32


def open_engine(model: str, *, fused: bool = True, dtype: str = "bfloat16", slots: int = SLOTS, **options: Any) -> Engine:
    """Without `fused`, on transformers' modules."""
    # As the worker does.
    torch.set_num_threads(default_threads())
    keep_freed()
    fastest = loader.fastest
    loader.fastest = fastest if fused else modules
    try:
        chosen = Options(path=Path(model), dtype=dtype, slots=slots, cache_mib=1024, **options)
        return load(chosen, lambda _: None)[0]
    finally:
        loader.fastest = fastest


class MeasuredEngine:
    """Submits requests, steps, and notes when each token came."""

    def __init__(self, model: str, *, fused: bool = True, limits: Limits | None = None, **options: Any) -> None:
        self.engine = open_engine(model, fused=fused, limits=limits or Limits(), **options)
        self._cores = Cores(torch.get_num_threads())
        self.times: dict[int, list[float]] = {}
        self.ids: dict[int, list[int]] = {}
        self._numbers = 0

    def submit(self, prompt: list[int], tokens: int) -> int:
        """The number by which its times are found."""
        self._numbers += 1
        request = InferenceRequest(
            request_id=f"r{self._numbers}", model="m", task="completion", prompt=prompt, max_tokens=tokens, temperature=0.0,
            ignore_eos=True,
        )  # fmt: skip
        self.times[self._numbers], self.ids[self._numbers] = [], []
        self.engine.submit(self._numbers, request)
        return self._numbers

    def step(self) -> None:
        """Raises RuntimeError when a request failed: then nothing here means anything."""
        step = self.engine.step()
        now = time.perf_counter()
        self._cores.look()
        for number, event in step.events if step else ():
            if isinstance(event, Fail):
                raise RuntimeError(event.message)
            if isinstance(event, Delta):
                self.times[number].append(now)
                self.ids[number] += event.token_ids

    def together(self, prompts: Sequence[list[int]], tokens: int) -> tuple[float, list[float]]:
        """Seconds for all, and to the first token of each."""
        begun = time.perf_counter()
        numbers = [self.submit(prompt, tokens) for prompt in prompts]
        while not self.engine.idle:
            self.step()
        return time.perf_counter() - begun, [self.times[number][0] - begun for number in numbers]
