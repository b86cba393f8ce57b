"""One request inside the engine: its tokens, how far they are computed, and its times."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.messages.inference import Performance, Usage

if TYPE_CHECKING:
    from mesh.messages.inference import Delta, FinishReason
    from node.worker.cache.extents import Extent
    from node.worker.cache.radix import Node
    from node.worker.output.choice import Choice, Pick


@dataclass(eq=False, kw_only=True)
class Sequence:
    """`tokens` is the prompt and what was generated so far; the extent holds the first `computed` of them.

    `choice` knows what its tokens mean, `resumed` counts those that another engine generated.
    `reason` says why it is complete, once it is. Times are monotonic seconds.
    """

    number: int
    tokens: list[int]
    prompt_length: int
    choice: Choice
    tenant: str = ""
    """What it computes is shared with sequences of the same one alone."""
    adapter: int = 0
    """Whose layers it goes through; 0 is the model as it is."""
    priority: int = 0
    deadline: float = float("inf")
    computed: int = 0
    extent: Extent | None = None
    prefix: Node | None = None
    largest_batch: int = 0
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0
    resumed: int = 0
    reason: FinishReason | None = None

    @property
    def rank(self) -> tuple[int, float, int]:
        """Smaller is served earlier and preempted later."""
        return (-self.priority, self.arrived, self.number)

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be sampled: 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens generated so far; also the position of the next one."""
        return len(self.tokens) - self.prompt_length

    def enter(self, extent: Extent) -> None:
        """Take room in the cache."""
        self.extent = extent
        self.started = self.started or time.monotonic()

    def leave(self) -> None:
        """Lose the room: everything is to be computed again."""
        self.extent = self.prefix = None
        self.computed = 0

    def take(self, pick: Pick) -> Delta:
        """Add a generated token; returns what it says, and sets `reason` when it is the last. Raises MeshError."""
        self.tokens.append(pick.token)
        delta, self.reason = self.choice.take(pick)
        return delta

    def mark(self) -> None:
        """A token was generated just now."""
        self.last_token = time.monotonic()
        self.first_token = self.first_token or self.last_token

    def usage(self) -> Usage:
        """What was read and written, in the model's own tokens."""
        return Usage(prompt_tokens=self.prompt_length, completion_tokens=self.generated)

    def performance(self) -> Performance:
        """Where the time went here. The rate counts the tokens after the first; for a single token, the whole time."""
        started = self.started or self.arrived
        decode = self.last_token - self.first_token
        prefill = max(0.0, self.first_token - started)
        own = self.generated - self.resumed
        tokens, seconds = (own - 1, decode) if own > 1 else (own, prefill)
        return Performance(
            prefill_time_ms=1000 * prefill,
            decode_time_ms=1000 * decode,
            queue_time_ms=1000 * (started - self.arrived),
            tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
            batch_size=self.largest_batch,
        )
