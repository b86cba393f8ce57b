"""What switches take: a moving average per ordered pair of models, and the best guess for pairs never seen."""

from __future__ import annotations

WEIGHT = 0.3
"""Of the newest switch in the average."""
GUESS = 5.0
"""Seconds, before anything was measured."""

Pair = tuple[str | None, str]
"""From and to; from None, the accelerator was free."""


class SwitchCosts:
    """Seconds by pair, without a clock."""

    def __init__(self) -> None:
        self.averages: dict[Pair, float] = {}

    def saw(self, pair: Pair, seconds: float) -> None:
        """One switch was measured."""
        known = self.averages.get(pair)
        self.averages[pair] = seconds if known is None else known + WEIGHT * (seconds - known)

    def of(self, pair: Pair) -> float:
        """What this switch will take: as measured, else as to the same model from others, else as all of them."""
        if pair in self.averages:
            return self.averages[pair]
        alike = [seconds for (_, model), seconds in self.averages.items() if model == pair[1]] or [*self.averages.values()]
        return sum(alike) / len(alike) if alike else GUESS
