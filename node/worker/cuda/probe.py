"""What a runner computes for a batch of all kinds, to be compared with what it computes in another way.

1. Several lengths; prompts in pieces beside single tokens; single tokens in every number of rows that may be recorded.
2. Then one layer's attention alone, with a short sliding window, and over a whole context: what a model's own window and a long
   past would bring only later.
"""

from __future__ import annotations

from contextlib import contextmanager
from itertools import cycle, islice, product, takewhile
from typing import TYPE_CHECKING

import torch

from node.worker.attention import attend
from node.worker.cuda.graphs import heights
from node.worker.output.choice import computed_only
from node.worker.runner import LEAST_ROWS
from node.worker.scheduler import Share
from node.worker.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import Tensor

    from node.worker.attention import StepContext
    from node.worker.runner import SlotRunner

STEPS = ((12, 8, 1, 1, 3), (11, 1, 15, 1, 4))
"""Tokens of each sequence in each step; the last token of those that have one left is computed again and again."""
LAST = (1, 0, 1, 1, 0)
WINDOW = 5
LONG_STEPS = (1, 7)
"""Tokens at the end of a whole context."""


def computed(runner: SlotRunner, vocabulary: int) -> list[Tensor]:
    """What the runner gives for the probe, [rows, what each has] on the host. Nobody may have room."""
    with torch.inference_mode():
        with _lent(runner, _sequences(vocabulary)) as sequences:
            found = [_step(runner, list(zip(sequences, counts, strict=False))) for counts in STEPS]
            last = [sequence for sequence, count in zip(sequences, LAST, strict=False) if count]
            # The same ones again fill a large batch up: they write the same to the same place.
            batches = [list(islice(cycle(last), rows)) for rows in heights(LEAST_ROWS, runner.slots)]
            found += [_run(runner, [Share(sequence, 1) for sequence in batch]) for batch in batches]
            with _attention(runner, WINDOW):
                found.append(_run(runner, _restarted(sequences)))
        with _lent(runner, [_sequence(range(runner.context_length))]) as (long,):
            _fill(runner, long)
            for window, count in product((None, WINDOW), LONG_STEPS):
                long.computed = len(long.tokens) - count
                with _attention(runner, window):
                    found.append(_run(runner, [Share(long, count)]))
    return found


def _sequences(vocabulary: int) -> list[Sequence]:
    lengths = [sum(counts) for counts in zip(*STEPS, LAST, strict=True)]
    return [
        _sequence((7 + 7919 * (index + 31 * number)) % vocabulary for index in range(length))
        for number, length in enumerate(lengths)
    ]


def _sequence(tokens: Iterable[int]) -> Sequence:
    ids = list(tokens)
    return Sequence(number=-1, tokens=ids, prompt_length=len(ids), choice=computed_only())


@contextmanager
def _lent(runner: SlotRunner, sequences: list[Sequence]) -> Iterator[list[Sequence]]:
    """As many of them as there is room for, from the first on."""
    lent = list(takewhile(runner.memory.lend, sequences))
    try:
        yield lent
    finally:
        for sequence in lent:
            runner.memory.release(sequence, keep=False)


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


class _Attention:
    """One layer's attention and nothing else: a Forward. What a row looks for depends on its token alone."""

    def __init__(self, keys: Tensor, window: int | None) -> None:
        source = torch.Generator().manual_seed(1)
        heads, _, size = keys.shape
        self._window = window
        self._tables = [
            torch.randn(97, count, size, generator=source).to(keys.device, keys.dtype) for count in (2 * heads, heads, heads)
        ]

    def __call__(self, tokens: Tensor, step: StepContext, keep: Tensor) -> Tensor:
        query, key, value = (table[tokens % len(table)] for table in self._tables)
        return attend(step, 0, query, key, value, scaling=None, window=self._window)[keep].flatten(1)


@contextmanager
def _attention(runner: SlotRunner, window: int | None) -> Iterator[None]:
    """The runner computes that."""
    forward, recorded = runner.forward, runner.recorded
    runner.forward, runner.recorded = _Attention(runner.arena.keys[0], window), None
    try:
        yield
    finally:
        runner.forward, runner.recorded = forward, recorded


def _fill(runner: SlotRunner, sequence: Sequence) -> None:
    """Random keys and values in the first layer, the same every time."""
    assert sequence.extent is not None
    source = torch.Generator(runner.arena.keys.device).manual_seed(1)
    place = slice(sequence.extent.start, sequence.extent.start + sequence.extent.capacity)
    for tensor in (runner.arena.keys, runner.arena.values):
        tensor[0][:, place].normal_(generator=source)
