"""Faster ways of computing on a GPU, each turned on only where it gives here what was computed before it.

1. They are tried in their order, each on top of the one before. The first that is refused, raises or differs stays off, with the
   reason in the log, and so do those after it.
2. What is compared is in `node.worker.cuda.probe`.
3. An error of the device may end this process, and would end the next: while something is tried a mark lies in the cache folder,
   and what left its mark there is not tried before somebody deletes it.
"""

from __future__ import annotations

import logging
import os
import platform
from typing import TYPE_CHECKING, Protocol

import torch

from mesh.errors import Misconfigured
from node.worker.cuda.graphs import CudaRecorder, Recorded, heights
from node.worker.cuda.marks import Marks
from node.worker.cuda.probe import computed
from node.worker.cuda.varlen import refusal
from node.worker.folders import cache_folder
from node.worker.reading import first_line
from node.worker.runner import LEAST_ROWS
from node.worker.suitability import AGREEMENT, difference

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from node.worker.cuda.graphs import Recorder
    from node.worker.runner import SlotRunner

_logger = logging.getLogger(__name__)

SWITCH = "INFERMESH_CUDA"
"""How far to go: one of LEVELS, the last when it is not set."""
LEVELS = ("plain", "varlen", "graphs")


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
    """Turn on what is right here; the names, none but for CUDA. While nobody runs.

    Raises Misconfigured for a level that does not exist, and whatever the device raises once it is broken.
    """
    if runner.device.type != "cuda":
        return []
    ways: list[Faster] = [Varlen(), Graphs(lambda: CudaRecorder(runner.device), adapted=adapted)]
    wanted = ways[: LEVELS.index(_level())]
    try:
        marks = Marks(cache_folder() / "cuda", torch.__version__, device_name, platform.node())
    # A user without a home folder.
    except RuntimeError as error:
        _logger.warning("the GPU's faster ways are not used: %s; set XDG_CACHE_HOME to a folder", error)
        return []
    return prove(runner, wanted, marks, vocabulary)


def prove(runner: SlotRunner, ways: Sequence[Faster], marks: Marks, vocabulary: int) -> list[str]:
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


def _level() -> str:
    level = os.environ.get(SWITCH) or LEVELS[-1]
    if level not in LEVELS:
        raise Misconfigured(f"{SWITCH}={level} is not known; use {', '.join(LEVELS)}, or leave it out")
    return level
