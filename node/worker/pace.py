"""How fast the engine computes, as measured, and how much of a prompt may be computed beside sequences that decode.

1. Whoever reads along waits for the slowest step: beside decoding sequences a step takes at most about `stretch` times as long as
   one without prompts.
2. A prompt always gets on: at least `LEAST_TOKENS` a step.
"""

from __future__ import annotations

SMOOTHING = 0.2
"""Weight of the newest step in the rates."""
LEAST_TOKENS = 16


class Pace:
    """Rates in tokens per second, 0 = not measured yet. `stretch` 0 = prompts may take all of a step."""

    def __init__(self, stretch: float = 0.0) -> None:
        self.prefill_rate = 0.0
        self.decode_rate = 0.0
        """What one request gets, whatever the batch."""
        self._stretch = stretch

    @property
    def allowance(self) -> int:
        """Prompt tokens in a step with sequences that decode."""
        if not (self._stretch and self.prefill_rate and self.decode_rate):
            return 1 << 62
        return max(LEAST_TOKENS, int((self._stretch - 1) / self.decode_rate * self.prefill_rate))

    def measure(self, *, prompt_tokens: int, decoding: bool, seconds: float) -> None:
        """A step took `seconds`, for so many tokens of prompts and with or without sequences that decode."""
        if not prompt_tokens:
            self.decode_rate = _smoothed(self.decode_rate, 1 / max(seconds, 1e-9))
            return
        if decoding and self.decode_rate:
            # At least half of it is the prompts': a step can be faster than the decoding alone was measured to be.
            seconds = max(seconds / 2, seconds - 1 / self.decode_rate)
        self.prefill_rate = _smoothed(self.prefill_rate, prompt_tokens / max(seconds, 1e-9))


def _smoothed(old: float, new: float) -> float:
    return new if old == 0 else old + SMOOTHING * (new - old)
