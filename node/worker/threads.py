"""How many threads compute a model on the CPU: tried on the model itself when it is loaded.

1. Few rows are computed fastest by few threads where a model is small, since each product waits for all of them. So what
   decides is a decoding step, then a prompt; of numbers that are equally good the least is taken.
2. Trying takes about `TRIAL` seconds: a step that is slow alone is long enough for all threads to pay, and nothing else is tried.
3. Each number has the best of its rounds, and the rounds take turns: what else the machine does then hits all of them. Where it
   does so much that one thread does not get a core, nothing is learnt, and the usual number is taken.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import psutil  # type: ignore[import-untyped]  # psutil ships no types
import torch

from node.worker.device import FEW_CORES, default_threads
from node.worker.output.choice import computed_only
from node.worker.scheduler import Share
from node.worker.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from node.worker.runner import SlotRunner

_logger = logging.getLogger(__name__)

TRIAL = 0.5
"""Seconds that trying may take, but for the round under way."""
LONG_STEP = 0.05
"""Seconds of a decoding step from which on all threads are taken untried."""
ROUNDS = 12
IDLE_SHARE = 0.8
"""The part of the time that one thread must have computed, for its times to mean anything."""
GAIN = 0.9
"""More threads must bring the time down to this part."""
PROMPT = 64
"""Tokens of the prompt that is tried, and of what the decoding step looks at."""


@dataclass(frozen=True)
class Timing:
    """Seconds for a decoding step of one sequence, and for a prompt."""

    decode: float
    prefill: float


def candidates() -> list[int]:
    """Numbers worth trying, upwards: one, half of the cores, all of them, all hardware threads that this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usual = default_threads()
    physical = min(allowed, psutil.cpu_count(logical=False) or allowed)
    # As in `default_threads`: where there are many, one is left to the node.
    spare = 0 if allowed <= FEW_CORES else 1
    return sorted({1, max(1, usual // 2), usual, max(1, physical - spare), max(1, allowed - spare)})


def choose(timings: Mapping[int, Timing]) -> int:
    """The best number of threads: more only for a clear gain, in decoding or, where that costs decoding nothing, for prompts."""
    numbers = sorted(timings)
    best = numbers[0]
    for number in numbers[1:]:
        new, old = timings[number], timings[best]
        if new.decode < GAIN * old.decode or (new.decode <= old.decode and new.prefill < GAIN * old.prefill):
            best = number
    return best


@dataclass(frozen=True)
class Clocks:
    """Seconds, and seconds in which this process computed, of all its threads together."""

    passed: Callable[[], float] = time.perf_counter
    computed: Callable[[], float] = time.process_time


def settle(runner: SlotRunner, vocabulary: int, *, clocks: Clocks | None = None) -> int:
    """Find out how many threads are best for this model, and use them from now on. Nothing may have room in the runner."""
    numbers = candidates()
    if len(numbers) == 1:
        torch.set_num_threads(numbers[0])
        return numbers[0]
    clocks = clocks or Clocks()
    torch.set_num_threads(default_threads())
    tokens = [(7 + 31 * index) % vocabulary for index in range(min(PROMPT, runner.context_length))]
    sequence = Sequence(number=-1, tokens=tokens, prompt_length=len(tokens), choice=computed_only())
    runner.memory.lend(sequence)
    try:
        with torch.inference_mode():
            found = _try(Trial(runner, sequence, clocks.passed), numbers, clocks)
    finally:
        runner.memory.release(sequence, keep=False)
    number = choose(found) if found else default_threads()
    torch.set_num_threads(number)
    _logger.info("threads that compute: %d%s", number, _told(found))
    return number


class Trial:
    """A sequence over which the same steps are run again and again."""

    def __init__(self, runner: SlotRunner, sequence: Sequence, clock: Callable[[], float]) -> None:
        self._runner = runner
        self._sequence = sequence
        self._clock = clock

    def timing(self) -> Timing:
        """With as many threads as there are now."""
        prefill = self._step(0, len(self._sequence.tokens) - 1)
        return Timing(min(self.decode() for _ in range(2)), prefill)

    def decode(self) -> float:
        """Seconds for the last token."""
        return self._step(len(self._sequence.tokens) - 1, 1)

    def _step(self, computed: int, count: int) -> float:
        self._sequence.computed = computed
        begun = self._clock()
        self._runner.run([Share(self._sequence, count)])
        return self._clock() - begun


def _try(trial: Trial, numbers: list[int], clocks: Clocks) -> dict[int, Timing]:
    """The best times of each number; empty when steps are long or the machine is busy."""
    trial.timing()  # the first steps allocate
    if trial.decode() > LONG_STEP:
        return {}
    found: dict[int, Timing] = {}
    passed = computed = 0.0
    end = clocks.passed() + TRIAL
    for number in itertools.chain.from_iterable([numbers] * ROUNDS):
        if clocks.passed() > end and len(found) == len(numbers):
            break
        torch.set_num_threads(number)
        trial.decode()  # threads are made, or sent away
        begun = clocks.passed(), clocks.computed()
        new = trial.timing()
        if number == 1:
            passed, computed = passed + clocks.passed() - begun[0], computed + clocks.computed() - begun[1]
        old = found.get(number, new)
        found[number] = Timing(min(old.decode, new.decode), min(old.prefill, new.prefill))
    return found if computed >= IDLE_SHARE * passed else {}


def _told(found: Mapping[int, Timing]) -> str:
    if not found:
        return ", as usual: steps are long, or the machine was too busy to try others"
    tried = (f"{number}: {1e3 * each.decode:.2f} and {1e3 * each.prefill:.2f}" for number, each in sorted(found.items()))
    return f"; ms for a token and for {PROMPT - 1} of a prompt with {', '.join(tried)}"
