"""How a row of logits is changed before a token is drawn from it.

1. The change is a pure function of the prompt and the tokens generated so far, so another node that replays them goes on alike.
2. Order: bias, repetition penalty over prompt and output, presence and frequency penalties over the output, bans.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Penalties:
    """What a request asks for; the defaults change nothing."""

    repetition: float = 1.0
    presence: float = 0.0
    frequency: float = 0.0
    bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def neutral(self) -> bool:
        """Nothing is changed."""
        return self.repetition == 1 and not self.presence and not self.frequency and not self.bias


class Adjuster:
    """The penalties of one sequence, and what it has said so far."""

    def __init__(self, penalties: Penalties, prompt: Iterable[int]) -> None:
        self._penalties = penalties
        self._bias = (list(penalties.bias), list(penalties.bias.values())) if penalties.bias else None
        self._seen: dict[int, None] = dict.fromkeys(prompt) if penalties.repetition != 1 else {}
        self._counts: dict[int, int] = {}

    def add(self, token: int) -> None:
        """A token was generated."""
        if self._penalties.neutral:
            return
        self._counts[token] = self._counts.get(token, 0) + 1
        if self._penalties.repetition != 1:
            self._seen[token] = None

    def apply(self, row: Tensor) -> None:
        """Change one row of logits in place."""
        penalties = self._penalties
        if self._bias:
            row[_ids(self._bias[0], row)] += torch.tensor(self._bias[1], dtype=row.dtype, device=row.device)
        if self._seen:
            ids = _ids(self._seen, row)
            values = row[ids]
            row[ids] = torch.where(values > 0, values / penalties.repetition, values * penalties.repetition)
        if self._counts and (penalties.presence or penalties.frequency):
            counts = torch.tensor(list(self._counts.values()), dtype=row.dtype, device=row.device)
            row[_ids(self._counts, row)] -= penalties.presence + penalties.frequency * counts


def ban(row: Tensor, tokens: Iterable[int]) -> None:
    """Make tokens impossible, unless nothing else were possible."""
    ids = _ids(tokens, row)
    before = row[ids]
    row[ids] = -math.inf
    if bool(row.max() == -math.inf):
        row[ids] = before


def _ids(tokens: Iterable[int], row: Tensor) -> Tensor:
    return torch.tensor(list(tokens), dtype=torch.long, device=row.device)
