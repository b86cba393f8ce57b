"""One request inside the engine: its tokens, how far they are computed, and its times."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mesh.messages.inference import Performance, Usage

if TYPE_CHECKING:
    from node.worker.output.choice import Choice


@dataclass(eq=False, kw_only=True)
class Sequence:
    """`tokens` is the prompt and what was generated so far; the cache slot holds the first `computed` of them.

    Times are monotonic seconds.
    """

    number: int
    tokens: list[int]
    prompt_length: int
    choice: Choice
    deadline: float = float("inf")
    computed: int = 0
    slot: int = -1
    largest_batch: int = 0
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    first_token: float = 0.0
    last_token: float = 0.0

    @property
    def pending(self) -> int:
        """Tokens to compute before the next one can be sampled: 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        """Tokens generated so far; also the position of the next one."""
        return len(self.tokens) - self.prompt_length

    def start(self, slot: int) -> None:
        """Take a slot."""
        self.slot = slot
        self.started = self.started or time.monotonic()

    def rewind(self) -> None:
        """Its slot was lost: compute everything again."""
        self.computed = 0

    def append(self, token: int) -> None:
        """Add a generated token."""
        self.tokens.append(token)
        self.last_token = time.monotonic()
        self.first_token = self.first_token or self.last_token

    def usage(self) -> Usage:
        """What was read and written, in the model's own tokens."""
        return Usage(prompt_tokens=self.prompt_length, completion_tokens=self.generated)

    def performance(self) -> Performance:
        """Where the time went. The rate counts the tokens after the first; for a single token, the whole time."""
        decode = self.last_token - self.first_token
        prefill = self.first_token - self.started
        tokens, seconds = (self.generated - 1, decode) if self.generated > 1 else (self.generated, prefill)
        return Performance(
            prefill_time_ms=1000 * prefill,
            decode_time_ms=1000 * decode,
            queue_time_ms=1000 * (self.started - self.arrived),
            tokens_per_second=tokens / seconds if seconds > 0 else 0.0,
            batch_size=self.largest_batch,
        )
