"""How long the answers of a model are: an average of those that this gateway saw end.

At most `MAX_MODELS` models are remembered, the ones answered last.
"""

from __future__ import annotations

MAX_MODELS = 1_024
SMOOTHING = 0.05
"""Weight of a new answer."""


class OutputLengths:
    """In tokens."""

    def __init__(self) -> None:
        self._means: dict[str, float] = {}

    def saw(self, model: str, tokens: int) -> None:
        """An answer of so many tokens ended."""
        mean = self._means.pop(model, float(tokens))
        self._means[model] = mean + SMOOTHING * (tokens - mean)
        if len(self._means) > MAX_MODELS:
            del self._means[next(iter(self._means))]

    def expected(self, model: str, default: int) -> int:
        """What the next answer is likely to have; `default` while nothing is known."""
        return max(1, round(self._means.get(model, default)))
