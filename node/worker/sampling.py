"""Which token comes next: a pure function of one row of logits and (seed, position).

1. A row's result depends on nothing but that row: no batch mate, no device generator, no machine.
2. Order: temperature, then top-k, then top-p over what top-k left. A token that ties with the last survivor survives too.
3. Both cuts are exact for any vocabulary; the short list of the best candidates is only a faster way to the same answer.
4. The noise of a candidate is a hash of (seed, position, token id) turned into a Gumbel variate; the best sum wins.
   `position` is the index of the generated token, so a resumed stream draws what the uninterrupted one would have drawn.
5. Temperature 0 is greedy: the lowest token id among the largest logits. So is one below `COLDEST`, which would leave nothing
   else to chance and whose quotients overflow.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SHORT_LIST = 256
"""Candidates that are looked at before the whole vocabulary is: a nucleus is rarely larger."""

COLDEST = 1e-6

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How one row is sampled. `top_k` 0 and `top_p` 1 cut nothing; `position` counts generated tokens from 0."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    position: int = 0


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id for each row of `logits` [rows, vocabulary]."""
    tokens: list[int] = logits.argmax(-1).tolist()
    noisy = [row for row, draw in enumerate(draws) if draw.temperature >= COLDEST]
    if noisy:
        drawn = _draw(logits[noisy].double(), [draws[row] for row in noisy])
        for row, token in zip(noisy, drawn, strict=True):
            tokens[row] = token
    return tokens


def survivors(logits: Tensor, draw: Draw) -> Tensor:
    """The token ids that top-k and top-p leave of one row, ascending."""
    scaled = logits.double() / draw.temperature
    best = scaled.sort(descending=True).values
    threshold = _cut(best, float(scaled.logsumexp(-1)), draw, whole=True)
    assert threshold is not None
    return (scaled >= threshold).nonzero()[:, 0]


def _draw(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    temperature = torch.tensor([[draw.temperature] for draw in draws], dtype=torch.float64, device=logits.device)
    scaled = logits / temperature
    values, ids = scaled.topk(min(SHORT_LIST, scaled.shape[-1]), dim=-1)
    totals = scaled.logsumexp(-1).tolist()
    whole = values.shape[-1] == scaled.shape[-1]
    tokens: list[int] = []
    for row, draw in enumerate(draws):
        threshold = _cut(values[row], totals[row], draw, whole=whole)
        if threshold is None:
            kept = survivors(logits[row], draw)
            tokens.append(_winner(scaled[row, kept], kept, draw))
        else:
            near = values[row] >= threshold
            tokens.append(_winner(values[row, near], ids[row, near], draw))
    return tokens


def _winner(values: Tensor, ids: Tensor, draw: Draw) -> int:
    return int(ids[(values + gumbel(ids, draw.seed, draw.position)).argmax()])


def _cut(best: Tensor, total: float, draw: Draw, *, whole: bool) -> float | None:
    """The smallest scaled logit that survives both cuts; None when `best` is too short to tell.

    `best` is descending, the whole row or its head; `total` is the log of the summed exponentials of the whole row.
    """
    last = float(best[-1])
    if draw.top_k and draw.top_k < best.shape[0]:
        best = best[best >= best[draw.top_k - 1]]
        total = float(best.logsumexp(-1))
    elif draw.top_k and not whole:
        return None
    limit = float(best[-1])
    if draw.top_p < 1:
        reached = ((best - total).exp().cumsum(-1) >= draw.top_p).nonzero()
        # Without a hit in the whole row, rounding left the sum of everything just below top_p.
        limit = float(best[reached[0, 0]]) if reached.shape[0] else limit
    # Behind the end of a head there may be more of the same value.
    return limit if whole or limit > last else None


def gumbel(ids: Tensor, seed: int, position: int) -> Tensor:
    """Standard Gumbel variates, one for each token id, in double precision."""
    key = _mix(_mix(seed & _WORD) + position * _GOLDEN)
    words = _mix_tensor(ids * _signed(_GOLDEN) + _signed(key))
    # 53 bits and a half step: strictly between 0 and 1.
    uniform = (_shifted(words, 11).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log()


def _mix(word: int) -> int:
    word = (word + _GOLDEN) & _WORD
    word = ((word ^ (word >> 30)) * _MIX_A) & _WORD
    word = ((word ^ (word >> 27)) * _MIX_B) & _WORD
    return word ^ (word >> 31)


def _mix_tensor(words: Tensor) -> Tensor:
    """The same finaliser on signed 64-bit integers, whose multiplication wraps."""
    words = (words ^ _shifted(words, 30)) * _signed(_MIX_A)
    words = (words ^ _shifted(words, 27)) * _signed(_MIX_B)
    return words ^ _shifted(words, 31)


def _shifted(words: Tensor, bits: int) -> Tensor:
    """A logical shift to the right; torch's own copies the sign."""
    return (words >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >> 63 else word
