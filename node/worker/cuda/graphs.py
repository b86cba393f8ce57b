"""Steps of single tokens, recorded once for each of some numbers of rows and played again: CUDA graphs.

1. What is recorded reads and writes at fixed addresses: a step's numbers are copied into tensors that were there when it was
   recorded, and the logits are copied out.
2. Only steps that consist of single tokens looked at by attention of variable length are played: their shapes say nothing of how
   long the sequences are. All others are computed as they come.
3. The largest number of rows is recorded first: the others find its memory free again. Where memory runs out, the largest steps
   are computed as they come.
4. Whatever moves weights or arena makes recordings worthless: `forget` before, `record` afterwards.
5. Recording writes to the scrap alone.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch

from node.worker.attention import StepContext
from node.worker.cuda.varlen import Lengths, Member, numbers
from node.worker.device import is_out_of_memory

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from node.worker.cache.arena import Arena
    from node.worker.runner import Forward

_logger = logging.getLogger(__name__)

WARM_UPS = 2
"""Libraries choose their kernels and take their own memory in the first runs, which cannot be recorded."""


class Recorder(Protocol):
    """Records several computations that share memory, and are never played at the same time."""

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What computes it again, and where the result then stands. Raises whatever goes wrong."""
        ...


@dataclass(frozen=True)
class Recording:
    """`play` computes the logits [rows, vocabulary] of the step that stands in `tokens` and `step`."""

    tokens: Tensor
    step: StepContext
    play: Callable[[], None]
    logits: Tensor

    def again(self, tokens: Tensor, step: StepContext, keep: Tensor) -> Tensor:
        """The logits of this step after the rows that `keep` numbers."""
        (told,), (given,) = self.step.lengths, step.lengths
        pairs = (
            (self.tokens, tokens),
            (self.step.places, step.places),
            (self.step.positions, step.positions),
            (told.starts, given.starts),
            (told.used, given.used),
        )
        for there, here in pairs:
            there.copy_(here)
        self.play()
        step.windows.update(self.step.windows)
        return self.logits.index_select(0, keep)


class Recorded:
    """A `node.worker.runner.Forward` that plays what it has recorded of another."""

    def __init__(
        self, forward: Forward, arena: Arena, *, heights: list[int], context: int, recorder: Callable[[], Recorder]
    ) -> None:
        """`heights`: for how many rows, ascending. `recorder` makes one for each time that all are recorded."""
        self._forward = forward
        self._arena = arena
        self._heights = heights
        self._context = context
        self._recorder = recorder
        self._recordings: dict[int, Recording] = {}

    def __call__(self, tokens: Tensor, step: StepContext, keep: Tensor) -> Tensor:
        """See Forward."""
        recording = self._recordings.get(len(tokens))
        if recording is None or [part.longest for part in step.lengths] != [1]:
            return self._forward(tokens, step, keep)
        return recording.again(tokens, step, keep)

    def height(self, rows: int) -> int:
        """To how many rows a step of single tokens should be filled up."""
        return min((height for height in self._recordings if height >= rows), default=rows)

    def record(self) -> None:
        """Take the memory and record anew. Raises what goes wrong, out of memory aside; nothing is recorded then."""
        self.forget()
        record = self._recorder()
        try:
            with torch.inference_mode():
                for height in reversed(self._heights):
                    self._add(height, record)
        except Exception:
            self.forget()
            raise

    def forget(self) -> None:
        """Give the memory back; every step is computed as it comes."""
        self._recordings.clear()

    def _add(self, height: int, record: Recorder) -> None:
        tokens, step = self._nobody(height)
        keep = torch.arange(height, device=tokens.device)
        try:
            play, logits = record(lambda: self._forward(tokens, step, keep))
        except Exception as error:
            if not _ran_out(error):
                raise
            _logger.warning("steps of %d rows are not recorded: the device has no memory left", height)
            return
        self._recordings[height] = Recording(tokens, step, play, logits)

    def _nobody(self, height: int) -> tuple[Tensor, StepContext]:
        """A step of rows that only fill it up."""
        arena = self._arena
        device = arena.keys.device
        told = numbers([Member(arena.scrap, 1, 1)] * height, arena.scrap + 1)
        queries, starts, used = (torch.tensor(each, dtype=torch.int32, device=device) for each in told)
        tokens = torch.zeros(height, dtype=torch.long, device=device)
        lengths = Lengths(rows=height, longest=1, context=self._context, queries=queries, starts=starts, used=used)
        places = torch.full_like(tokens, arena.scrap)
        step = StepContext(
            arena=arena, places=places, positions=torch.zeros_like(tokens), groups=[], pieces=[], lengths=[lengths]
        )
        return tokens, step


class CudaRecorder:
    """By CUDA graphs with one memory for all, on the device that is current."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types here

    def __call__(self, compute: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """See Recorder."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            self._warm_up(compute)
            # An error while recording leaves torch on the other stream; the outer one brings it back.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"),
            ):
                result = compute()
        return graph.replay, result

    def _warm_up(self, compute: Callable[[], Tensor]) -> None:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for _ in range(WARM_UPS):
                compute()
        torch.cuda.current_stream().wait_stream(self._stream)


def heights(least: int, slots: int) -> list[int]:
    """Numbers of rows to record: doubled from the least on, and the slots."""
    found = [least]
    while found[-1] < slots:
        found.append(min(2 * found[-1], slots))
    return found


def _ran_out(error: BaseException) -> bool:
    """Whether it began with too little memory: a recording that broke off raises an error of its own about it."""
    chain = error
    while chain.__context__ is not None:
        chain = chain.__context__
    return any(isinstance(each, Exception) and is_out_of_memory(each) for each in (error, chain))
