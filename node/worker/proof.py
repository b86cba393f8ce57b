"""Faster ways of computing on a GPU, each turned on only where it gives here what was computed before it.

1. They are tried in their order, each on top of the one before. The first that is refused, raises or differs stays off, with the
   reason in the log, and so do those after it.
2. What is compared: a batch of several lengths, prompts in pieces beside single tokens, and single tokens in every number of rows
   that is recorded; then one layer with a sliding window shorter than the probe: those of most models are longer.
3. An error of the device may end this process, and would end the next: while something is tried a mark lies in the cache folder,
   and what left its mark there is not tried before somebody deletes it.
"""

from __future__ import annotations

import logging
import os
import platform
from contextlib import contextmanager
from itertools import cycle, islice
from typing import TYPE_CHECKING, Protocol

import torch

from mesh.errors import Misconfigured
from node.worker.attention import attend
from node.worker.folders import cache_folder
from node.worker.graphs import CudaRecorder, Recorded, heights
from node.worker.marks import Marks
from node.worker.output.choice import computed_only
from node.worker.reading import first_line
from node.worker.runner import LEAST_ROWS
from node.worker.scheduler import Share
from node.worker.sequence import Sequence
from node.worker.suitability import AGREEMENT, difference
from node.worker.varlen import refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from collections.abc import Sequence as Several

    from torch import Tensor

    from node.worker.attention import StepContext
    from node.worker.graphs import Recorder
    from node.worker.runner import SlotRunner

_logger = logging.getLogger(__name__)

SWITCH = "INFERMESH_CUDA"
"""How far to go: one of LEVELS, the last when it is not set."""
LEVELS = ("plain", "varlen", "graphs")
STEPS = ((12, 8, 1, 1, 3), (11, 1, 15, 1, 4))
"""Tokens of each sequence in each step; the last token of those that have one left is computed again and again."""
LAST = (1, 0, 1, 1, 0)
WINDOW = 5


class Faster(Protocol):
    """A way of computing that a runner may take."""

    name: str

    def refusal(self, runner: SlotRunner) -> str | None:
        """Why it is not for this runner; None where it may be tried."""
        ...

    def on(self, runner: SlotRunner) -> None:
        """Take it. Raises whatever goes wrong."""
        ...

    def off(self, runner: SlotRunner) -> None:
        """Back to what was before, however far `on` came."""
        ...


class Varlen:
    """Attention of variable length. See Faster."""

    name = "varlen"

    def refusal(self, runner: SlotRunner) -> str | None:
        """See Faster."""
        return refusal(runner.device, runner.arena.keys.dtype, runner.arena.keys.shape[-1])

    def on(self, runner: SlotRunner) -> None:
        """See Faster."""
        runner.varlen = True

    def off(self, runner: SlotRunner) -> None:
        """See Faster."""
        runner.varlen = False


class Graphs:
    """Recorded steps. See Faster. `adapted`: the model has adapters, which every step chooses anew."""

    name = "graphs"

    def __init__(self, recorder: Callable[[], Recorder], *, adapted: bool) -> None:
        self._recorder = recorder
        self._adapted = adapted

    def refusal(self, runner: SlotRunner) -> str | None:  # noqa: ARG002 - every runner of CUDA can
        """See Faster."""
        return "adapters are served beside the model" if self._adapted else None

    def on(self, runner: SlotRunner) -> None:
        """See Faster."""
        rows = heights(LEAST_ROWS, runner.slots)
        runner.recorded = Recorded(
            runner.forward, runner.arena, heights=rows, context=runner.context_length, recorder=self._recorder
        )
        runner.recorded.record()

    def off(self, runner: SlotRunner) -> None:
        """See Faster."""
        if runner.recorded:
            runner.recorded.forget()
        runner.recorded = None


def faster(runner: SlotRunner, vocabulary: int, *, device_name: str, adapted: bool) -> list[str]:
    """Turn on what is right here; the names. For CUDA, while nobody runs.

    Raises Misconfigured for a level that does not exist, and whatever the device raises once it is broken.
    """
    ways: list[Faster] = [Varlen(), Graphs(lambda: CudaRecorder(runner.device), adapted=adapted)]
    wanted = ways[: LEVELS.index(_level())]
    try:
        marks = Marks(cache_folder() / "cuda", torch.__version__, device_name, platform.node())
    # A user without a home folder.
    except RuntimeError as error:
        _logger.warning("the GPU's faster ways are not used: %s; set XDG_CACHE_HOME to a folder", error)
        return []
    return prove(runner, wanted, marks, vocabulary)


def prove(runner: SlotRunner, ways: Several[Faster], marks: Marks, vocabulary: int) -> list[str]:
    """Turn on those that are right, up to the first that is not; their names."""
    on: list[str] = []
    if not ways:
        return on
    try:
        expected = computed(runner, vocabulary)
    # Too little memory for so large a batch, say: the engine can do with smaller ones.
    except Exception:
        _logger.exception("the GPU's faster ways are not used: there is nothing to compare them with")
        return on
    for way in ways:
        if reason := way.refusal(runner) or _tried(runner, way, marks, vocabulary, expected):
            _logger.warning("the GPU's faster way %s is not used: %s", way.name, reason)
            break
        on.append(way.name)
    if on:
        _logger.info("computing on the GPU with %s", " and ".join(on))
    return on


def computed(runner: SlotRunner, vocabulary: int) -> list[Tensor]:
    """What the runner gives for the probe, [rows, what each has] on the host. Nobody may have room."""
    sequences = _sequences(runner, vocabulary)
    try:
        with torch.inference_mode():
            found = [_step(runner, list(zip(sequences, counts, strict=False))) for counts in STEPS]
            last = [sequence for sequence, count in zip(sequences, LAST, strict=False) if count]
            # The same ones again fill a large batch up: they write the same to the same place.
            batches = [list(islice(cycle(last), rows)) for rows in heights(LEAST_ROWS, runner.slots)]
            found += [_run(runner, [Share(sequence, 1) for sequence in batch]) for batch in batches]
            with _window(runner):
                return [*found, _run(runner, _restarted(sequences))]
    finally:
        for sequence in sequences:
            runner.memory.release(sequence, keep=False)


def _sequences(runner: SlotRunner, vocabulary: int) -> list[Sequence]:
    """As many as there is room for."""
    lengths = [sum(counts) for counts in zip(*STEPS, LAST, strict=True)]
    found = []
    for number, length in enumerate(lengths):
        tokens = [(7 + 7919 * (index + 31 * number)) % vocabulary for index in range(length)]
        sequence = Sequence(number=-1, tokens=tokens, prompt_length=length, choice=computed_only())
        if not runner.memory.lend(sequence):
            break
        found.append(sequence)
    return found


def _step(runner: SlotRunner, counts: list[tuple[Sequence, int]]) -> Tensor:
    """Against the order of their places."""
    found = _run(runner, [Share(sequence, count) for sequence, count in reversed(counts)])
    for sequence, count in counts:
        sequence.computed += count
    return found


def _restarted(sequences: list[Sequence]) -> list[Share]:
    """The second half of each, of the longest only its last token."""
    for sequence in sequences:
        sequence.computed = len(sequence.tokens) // 2
    sequences[0].computed = len(sequences[0].tokens) - 1
    return [Share(sequence, sequence.pending) for sequence in reversed(sequences)]


def _run(runner: SlotRunner, shares: list[Share]) -> Tensor:
    return runner.run(sorted(shares, key=lambda share: share.count > 1)).float().cpu()


def _tried(runner: SlotRunner, way: Faster, marks: Marks, vocabulary: int, expected: list[Tensor]) -> str | None:
    """Turn it on and compare; why it is off again. Raises what the device raises once it is broken."""
    try:
        if left := marks.left(way.name):
            return f"a worker ended while it tried that; delete {left} to try again"
        with marks.trying(way.name):
            reason = _compared(runner, way, vocabulary, expected)
            if reason:
                way.off(runner)
            if runner.device.type == "cuda":
                torch.cuda.synchronize(runner.device)
    except OSError as error:
        way.off(runner)
        return f"no mark can be made ({error}); set XDG_CACHE_HOME to a folder that can be written to"
    return reason


def _compared(runner: SlotRunner, way: Faster, vocabulary: int, expected: list[Tensor]) -> str | None:
    try:
        way.on(runner)
        found = computed(runner, vocabulary)
    # Kernels and drivers that were never seen may take any offence.
    except Exception as error:
        _logger.info("it failed", exc_info=True)
        return f"{type(error).__name__}: {first_line(error)}"
    rows = [pair for ours, theirs in zip(found, expected, strict=True) for pair in zip(ours, theirs, strict=True)]
    allowed = AGREEMENT[runner.arena.keys.dtype]
    # Written so that NaN is too much.
    wrong = [apart for ours, theirs in rows if not (apart := difference(ours, theirs)) <= allowed]
    return f"what it computes differs by {max(wrong):.2g} of its spread" if wrong else None


class _Glance:
    """One layer's attention with a window, and nothing else: a Forward. What a row looks for depends on its token alone."""

    def __init__(self, keys: Tensor) -> None:
        source = torch.Generator().manual_seed(1)
        heads, _, size = keys.shape
        self._tables = [
            torch.randn(97, count, size, generator=source).to(keys.device, keys.dtype) for count in (2 * heads, heads, heads)
        ]

    def __call__(self, tokens: Tensor, step: StepContext, keep: Tensor) -> Tensor:
        query, key, value = (table[tokens % len(table)] for table in self._tables)
        return attend(step, 0, query, key, value, scaling=None, window=WINDOW)[keep].flatten(1)


@contextmanager
def _window(runner: SlotRunner) -> Iterator[None]:
    """The runner computes a single layer."""
    forward, recorded = runner.forward, runner.recorded
    runner.forward, runner.recorded = _Glance(runner.arena.keys[0]), None
    try:
        yield
    finally:
        runner.forward, runner.recorded = forward, recorded


def _level() -> str:
    level = os.environ.get(SWITCH) or LEVELS[-1]
    if level not in LEVELS:
        raise Misconfigured(f"{SWITCH}={level} is not known; use {', '.join(LEVELS)}, or leave it out")
    return level
