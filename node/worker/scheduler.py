"""What is computed in the next step.

1. A step computes at most `budget` tokens. Every decoding sequence that has room is in every step: the budget is larger than the
   slots.
2. What the decoding ones leave goes to prompts, by rank: as many whole ones as fit. A prompt is cut into pieces only when it
   would not fit into a step of its own, or must not hold up those that decode (`node.worker.pace`).
3. When a sequence that runs finds no room to grow, the last of the running ones by rank gives way: it waits again, in its place,
   and is computed again later. The first by rank is never preempted for another, so there is always progress.
4. Rank: higher priority first, then who came first. At most `queue_limit` sequences wait; one more is `Busy`, never an endless
   wait. Who was preempted always finds a place.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mesh.errors import Busy

if TYPE_CHECKING:
    from node.worker.cache.memory import Memory
    from node.worker.pace import Pace
    from node.worker.sequence import Sequence


CROWD = 3
"""So many may read along for each that begins, before those that begin are let in slowly."""


@dataclass(frozen=True)
class Share:
    """A sequence's part in a step: its next `count` tokens."""

    sequence: Sequence
    count: int

    @property
    def completes(self) -> bool:
        """After it, the sequence's next token can be sampled."""
        return self.count == self.sequence.pending


class Scheduler:
    """Who waits, who is active, and what each gets of the next step."""

    def __init__(self, memory: Memory, pace: Pace, *, slots: int, budget: int, queue_limit: int) -> None:
        self.slots = slots
        self.queue_limit = queue_limit
        self.waiting: list[Sequence] = []
        self.active: list[Sequence] = []
        self.preemptions = 0
        self._memory = memory
        self._pace = pace
        self._most = slots
        self._full_budget = self._budget = max(budget, slots + 1)

    def enqueue(self, sequence: Sequence) -> None:
        """Let it wait for room. Raises Busy."""
        if len(self.waiting) >= self.queue_limit:
            raise Busy(f"{len(self.waiting)} requests wait for this model already; try again later", retry_after=1.0)
        self._queue(sequence)

    def plan(self) -> list[Share]:
        """The shares of the next step, those of a single token first. Gives room to waiting sequences."""
        shares = self._decoding()
        left = self._budget - len(shares)
        beginning = len(self.waiting) + len(self.active) - len(shares)
        # When many wait for their first token, a crowd arrived: let in by drops, it would wait longer than it makes others wait.
        if shares and (beginning == 1 or CROWD * beginning < len(shares)):
            left = min(left, self._pace.allowance)
        prompts = self._going_on(left)
        left -= sum(share.count for share in prompts)
        while left > 0 and self.waiting and len(self.active) < self._most:
            sequence = self.waiting[0]
            if prompts and self._memory.unknown(sequence) > left:
                break
            if not self._memory.admit(sequence):
                break
            self.active.append(self.waiting.pop(0))
            prompts.append(Share(sequence, min(left, sequence.pending)))
            left -= prompts[-1].count
        return sorted(shares + prompts, key=lambda share: share.count > 1)

    def remove(self, sequence: Sequence, *, keep: bool) -> None:
        """Forget a sequence, active or waiting. Without `keep` what it computed may be bad, and is erased."""
        if sequence.extent is None:
            self.waiting.remove(sequence)
        else:
            self.active.remove(sequence)
            self._memory.release(sequence, keep=keep)

    def rewind(self) -> None:
        """The cache is to be rebuilt: every active sequence loses its room and waits again, in its place."""
        for sequence in self.active:
            sequence.leave()
            self._queue(sequence)
        self.active.clear()

    def shrink(self, tokens: int) -> bool:
        """A step of so many tokens was too large: make the next ones half as large. False when they cannot be smaller."""
        if tokens > self._most + 1:
            self._budget = max(self._most + 1, min(self._budget, tokens) // 2)
            return True
        if self._most > 1:
            self._most //= 2
            self._budget = self._most + 1
            for sequence in sorted(self.active, key=_rank)[self._most :]:
                self._preempt(sequence)
            return True
        return False

    def grow(self) -> bool:
        """Steps have gone well for a while: allow larger ones again. True when they may be as large as was asked for."""
        self._most = min(self.slots, 2 * self._most)
        self._budget = min(self._full_budget, max(2 * self._budget, self._most + 1))
        return (self._most, self._budget) == (self.slots, self._full_budget)

    def _decoding(self) -> list[Share]:
        """One token for each that decodes; who finds no room to grow takes it from the last by rank."""
        decoding = sorted((each for each in self.active if each.pending == 1), key=_rank)
        for sequence in decoding:
            while sequence.extent is not None and not self._memory.extend(sequence):
                self._preempt(max(self.active, key=_rank))
        return [Share(sequence, 1) for sequence in decoding if sequence.extent is not None]

    def _going_on(self, left: int) -> list[Share]:
        """Further pieces of the prompts that have begun."""
        prompts: list[Share] = []
        for sequence in sorted((each for each in self.active if each.pending > 1), key=_rank):
            if left > 0:
                prompts.append(Share(sequence, min(left, sequence.pending)))
                left -= prompts[-1].count
        return prompts

    def _preempt(self, sequence: Sequence) -> None:
        self.active.remove(sequence)
        self._memory.release(sequence, keep=True)
        self._queue(sequence)
        self.preemptions += 1

    def _queue(self, sequence: Sequence) -> None:
        bisect.insort(self.waiting, sequence, key=_rank)


def _rank(sequence: Sequence) -> tuple[int, float, int]:
    return sequence.rank
