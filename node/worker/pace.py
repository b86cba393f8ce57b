"""How fast the engine computes, as measured, and how much of a prompt may be computed beside sequences that decode.

1. Whoever reads along waits for the slowest step: beside decoding sequences a step takes at most about `stretch` times as long as
   one without prompts.
2. A prompt always gets on: at least `LEAST_TOKENS` a step.
3. Beside decoding sequences a prompt is computed in smaller pieces, and later pieces look back further: both are slower by the
   token than a prompt alone. So that rate is measured for itself; before it is known, half of the prompts' own is assumed; and it
   is believed sooner when it falls than when it rises.
"""

from __future__ import annotations

SMOOTHING = 0.2
"""Weight of the newest step in the rates."""
FALLING = 0.5
"""The same for a rate beside decoding sequences that turned out lower."""
LEAST_TOKENS = 8


class Pace:
    """Rates in tokens per second, 0 = not measured yet. `stretch` 0 = prompts may take all of a step."""

    def __init__(self, stretch: float = 0.0) -> None:
        self.prefill_rate = 0.0
        self.decode_rate = 0.0
        """What one request gets, whatever the batch."""
        self._stretch = stretch
        self._beside = 0.0

    @property
    def allowance(self) -> int:
        """Prompt tokens in a step with sequences that decode."""
        if not (self._stretch and self.prefill_rate and self.decode_rate):
            return 1 << 62
        rate = self._beside or self.prefill_rate / 2
        return max(LEAST_TOKENS, int((self._stretch - 1) / self.decode_rate * rate))

    def measure(self, *, prompt_tokens: int, decoding: bool, seconds: float) -> None:
        """A step took `seconds`, for so many tokens of prompts and with or without sequences that decode."""
        if not prompt_tokens:
            self.decode_rate = _smoothed(self.decode_rate, 1 / max(seconds, 1e-9))
            return
        if decoding and self.decode_rate:
            # At least half of it is the prompts': a step can be faster than the decoding alone was measured to be.
            seconds = max(seconds / 2, seconds - 1 / self.decode_rate)
            rate = prompt_tokens / max(seconds, 1e-9)
            self._beside = _smoothed(self._beside, rate, FALLING if rate < self._beside else SMOOTHING)
        self.prefill_rate = _smoothed(self.prefill_rate, prompt_tokens / max(seconds, 1e-9))


def _smoothed(old: float, new: float, weight: float = SMOOTHING) -> float:
    return new if old == 0 else old + weight * (new - old)
