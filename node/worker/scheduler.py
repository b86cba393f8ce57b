"""What is computed in the next step.

1. A step computes at most `budget` tokens. Every decoding sequence is in every step: the budget is larger than the slots.
2. What the decoding ones leave goes to prompts, first come first served: as many whole ones as fit. A prompt is cut into pieces
   only when it would not fit into a step of its own.
3. Active sequences occupy the slots [0, active): whoever leaves, the last one moves into the gap.
4. At most `queue_limit` sequences wait; one more is `Busy`, never an endless wait.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from mesh.errors import Busy

if TYPE_CHECKING:
    from node.worker.sequence import Sequence


@dataclass(frozen=True)
class Share:
    """A sequence's part in a step: its next `count` tokens."""

    sequence: Sequence
    count: int

    @property
    def completes(self) -> bool:
        """After it, the sequence's next token can be sampled."""
        return self.count == self.sequence.pending


class Move(NamedTuple):
    """The cache must copy `length` positions of slot `source` into slot `target`."""

    source: int
    target: int
    length: int


class Scheduler:
    """Who waits, who is active, and what each gets of the next step."""

    def __init__(self, *, slots: int, budget: int, queue_limit: int) -> None:
        self.slots = slots
        self.waiting: deque[Sequence] = deque()
        self.active: list[Sequence] = []
        self._budget = max(budget, slots + 1)
        self._queue_limit = queue_limit

    def enqueue(self, sequence: Sequence) -> None:
        """Let it wait for a slot. Raises Busy."""
        if len(self.waiting) >= self._queue_limit:
            raise Busy(f"{len(self.waiting)} requests wait for this model already; try again later", retry_after=1.0)
        self.waiting.append(sequence)

    def plan(self) -> list[Share]:
        """The shares of the next step, those of a single token first. Gives free slots to waiting sequences."""
        shares = [Share(sequence, 1) for sequence in self.active if sequence.pending == 1]
        left = self._budget - len(shares)
        prompts: list[Share] = []
        for sequence in sorted((each for each in self.active if each.pending > 1), key=lambda each: each.arrived):
            if left > 0:
                prompts.append(Share(sequence, min(left, sequence.pending)))
                left -= prompts[-1].count
        while left > 0 and self.waiting and len(self.active) < self.slots:
            if prompts and self.waiting[0].pending > left:
                break
            sequence = self._admit()
            prompts.append(Share(sequence, min(left, sequence.pending)))
            left -= prompts[-1].count
        return sorted(shares + prompts, key=lambda share: share.count > 1)

    def _admit(self) -> Sequence:
        sequence = self.waiting.popleft()
        sequence.start(len(self.active))
        self.active.append(sequence)
        return sequence

    def remove(self, sequence: Sequence) -> Move | None:
        """Forget a sequence, active or waiting; the move that closes its gap."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return None
        gap, last = sequence.slot, self.active.pop()
        sequence.slot = -1
        if last is sequence:
            return None
        move = Move(last.slot, gap, last.computed)
        self.active[gap] = last
        last.slot = gap
        return move

    def rewind(self) -> None:
        """The cache was lost: every active sequence starts over."""
        for sequence in self.active:
            sequence.rewind()
