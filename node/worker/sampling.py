"""Which token comes next: a pure function of one row of logits and (seed, position).

1. A row's result depends on nothing but that row: no batch mate, no device generator, no machine.
2. Order: temperature, then top-k, then top-p over what top-k left, then min-p. A token that ties with the last survivor survives
   too.
3. All cuts are exact for any vocabulary; the short list of the best candidates is only a faster way to the same answer.
4. The token is drawn in two steps, each the largest of score plus Gumbel noise: first the block of `BLOCK` neighbouring ids,
   whose score is the log of its survivors' summed exponentials, then the token in it. The distribution is exactly that of noise
   for every survivor, and V / BLOCK + BLOCK hashes take the place of V.
5. Noise is a hash of (seed, position, token or block). `position` is the index of the generated token, so a resumed stream draws
   what the uninterrupted one would have drawn.
6. Temperature 0 is greedy: the lowest token id among the largest logits. So is one below `COLDEST`, which would leave nothing
   else to chance and whose quotients overflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

SHORT_LIST = 256
"""Candidates that are looked at before the whole vocabulary is: a nucleus is rarely larger."""
BLOCK = 256
COLDEST = 1e-6

_WORD = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MIX_A = 0xBF58476D1CE4E5B9
_MIX_B = 0x94D049BB133111EB
_BLOCKS = 0xD1B54A32D192ED03
"""Sets the noise of blocks apart from that of tokens."""


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How one row is sampled. `top_k` 0, `top_p` 1 and `min_p` 0 cut nothing; `position` counts generated tokens from 0."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int = 0
    position: int = 0

    @property
    def greedy(self) -> bool:
        """Nothing is left to chance."""
        return self.temperature < COLDEST

    @property
    def uncut(self) -> bool:
        """Every token may be drawn."""
        return not self.top_k and self.top_p >= 1 and self.min_p <= 0


def sample(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """One token id for each row of `logits` [rows, vocabulary]."""
    noisy = [row for row, draw in enumerate(draws) if not draw.greedy]
    if len(noisy) == len(draws):
        return _draw(logits, draws)
    tokens = _largest(logits)
    if noisy:
        drawn = _draw(logits[noisy], [draws[row] for row in noisy])
        for row, token in zip(noisy, drawn, strict=True):
            tokens[row] = token
    return tokens


def _largest(logits: Tensor) -> list[int]:
    """The lowest id among the largest logits of each row. On a CPU numpy finds it twenty times as fast as torch does."""
    found: list[int] = (logits.float().numpy() if logits.device.type == "cpu" else logits).argmax(-1).tolist()
    return found


def survivors(logits: Tensor, draw: Draw) -> Tensor:
    """The token ids that the cuts leave of one row, ascending."""
    scaled = logits[None].double() / draw.temperature
    return (scaled[0] >= _thresholds(scaled, [draw])[0]).nonzero()[:, 0]


def _draw(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    head, tail = _by_short_list(logits, draws)
    tokens = [head.get(row, -1) for row in range(len(draws))]
    if tail:
        for row, token in zip(tail, _by_whole_rows(logits[tail], [draws[row] for row in tail]), strict=True):
            tokens[row] = token
    return tokens


def _by_short_list(logits: Tensor, draws: Sequence[Draw]) -> tuple[dict[int, int], list[int]]:
    """The tokens of the rows whose survivors are all on the short list, and the other rows."""
    size = logits.shape[-1]
    whole = size <= SHORT_LIST
    hopeful = [row for row, draw in enumerate(draws) if whole or not draw.uncut]
    if not hopeful:
        return {}, list(range(len(draws)))
    chosen = [draws[row] for row in hopeful]
    rows = logits if len(hopeful) == len(draws) else logits[hopeful]
    best, ids = rows.topk(min(SHORT_LIST, size), dim=-1)
    values = best.double() / _column([draw.temperature for draw in chosen], rows)
    limits, sure = _limits(values, _totals(rows, chosen), chosen, size=size)
    picked = _pick(values.masked_fill(values < limits, -math.inf), ids, chosen, size=size).tolist()
    sure_rows: list[bool] = sure.tolist()
    found = {row: token for row, token, ok in zip(hopeful, picked, sure_rows, strict=True) if ok}
    return found, [row for row in range(len(draws)) if row not in found]


def _by_whole_rows(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    scaled = logits.double() / _column([draw.temperature for draw in draws], logits)
    cut = [row for row, draw in enumerate(draws) if not draw.uncut]
    if cut:
        limits = _thresholds(scaled[cut], [draws[row] for row in cut])
        scaled[cut] = scaled[cut].masked_fill(scaled[cut] < limits, -math.inf)
    rows, size = scaled.shape
    blocks = pad(scaled, (0, -size % BLOCK), value=-math.inf).view(rows, -1, BLOCK)
    scores = blocks.logsumexp(-1) + _noise(
        torch.arange(blocks.shape[1], device=logits.device)[None], _keys(draws, logits, _BLOCKS)
    )
    winner = scores.argmax(-1)
    ids = winner[:, None] * BLOCK + torch.arange(BLOCK, device=logits.device)
    inner = blocks[torch.arange(rows, device=logits.device), winner] + _noise(ids, _keys(draws, logits))
    tokens: list[int] = ids.gather(1, inner.argmax(-1, keepdim=True))[:, 0].tolist()
    return tokens


def _pick(values: Tensor, ids: Tensor, draws: Sequence[Draw], *, size: int) -> Tensor:
    """The same from a list of candidates; those that were cut have the value minus infinity."""
    block = ids // BLOCK
    top = values[:, :1]
    masses = values.new_zeros(values.shape[0], -(-size // BLOCK)).scatter_add_(1, block, (values - top).exp())
    numbers = torch.arange(masses.shape[1], device=values.device)[None]
    winner = (masses.log() + _noise(numbers, _keys(draws, values, _BLOCKS))).argmax(-1, keepdim=True)
    scores = (values + _noise(ids, _keys(draws, values))).masked_fill(block != winner, -math.inf)
    return ids.gather(1, scores.argmax(-1, keepdim=True))[:, 0]


def _totals(rows: Tensor, draws: Sequence[Draw]) -> Tensor:
    """For rows that top-p cuts without top-k: the log of the summed exponentials of the whole row. Else 0."""
    totals = torch.zeros(len(draws), 1, dtype=torch.float64, device=rows.device)
    needed = [row for row, draw in enumerate(draws) if draw.top_p < 1 and not draw.top_k]
    if needed:
        temperature = _column([draws[row].temperature for row in needed], rows)
        totals[needed] = (rows[needed].double() / temperature).logsumexp(-1, keepdim=True)
    return totals


def _thresholds(scaled: Tensor, draws: Sequence[Draw]) -> Tensor:
    """The smallest surviving value of each whole row, as a column."""
    totals = scaled.logsumexp(-1, keepdim=True)
    return _limits(scaled.sort(descending=True).values, totals, draws, size=scaled.shape[-1])[0]


def _limits(best: Tensor, totals: Tensor, draws: Sequence[Draw], *, size: int) -> tuple[Tensor, Tensor]:
    """The smallest surviving value of each row, as a column, and which of them are certain.

    `best` is descending, the whole rows or their heads, `size` the length of the whole rows and `totals` the logs of their summed
    exponentials. Behind the end of a head there may be more of its last value, so a limit there is not certain.
    """
    length = best.shape[-1]
    top_k = torch.tensor([[min(draw.top_k or size, size)] for draw in draws], device=best.device)
    top_p = _column([draw.top_p for draw in draws], best)
    min_p = _column([math.log(draw.min_p) if draw.min_p > 0 else -math.inf for draw in draws], best)
    known_k = top_k <= length
    limits = torch.where(known_k, best.gather(1, top_k.clamp(max=length) - 1), -math.inf)
    kept = best.masked_fill(best < limits, -math.inf)
    counted = torch.tensor([[bool(draw.top_k)] for draw in draws], device=best.device)
    mass = (kept - torch.where(counted, kept.logsumexp(-1, keepdim=True), totals)).exp().cumsum(-1)
    short = (mass < top_p).sum(-1, keepdim=True)
    # Without a hit in the whole row, rounding left the sum of everything just below top_p.
    reached = (top_p < 1) & (short < length)
    limits = torch.where(reached, torch.maximum(limits, best.gather(1, short.clamp(max=length - 1))), limits)
    limits = torch.maximum(limits, best[:, :1] + min_p)
    if length == size:
        return limits, torch.ones(len(draws), dtype=torch.bool, device=best.device)
    # What top-p leaves of a top-k that goes beyond the head cannot be told from the head.
    told = known_k | ~counted | (top_p >= 1)
    return limits, (told & (limits > best[:, -1:]))[:, 0]


def gumbel(ids: Tensor, seed: int, position: int) -> Tensor:
    """Standard Gumbel variates, one for each token id, in double precision."""
    return _noise(ids, torch.tensor(_signed(_key(seed, position)), device=ids.device))


def block_gumbel(blocks: Tensor, seed: int, position: int) -> Tensor:
    """The same for blocks of tokens."""
    return _noise(blocks, torch.tensor(_signed(_mix(_key(seed, position) ^ _BLOCKS)), device=blocks.device))


def _key(seed: int, position: int) -> int:
    return _mix(_mix(seed & _WORD) + position * _GOLDEN)


def _keys(draws: Sequence[Draw], like: Tensor, stream: int = 0) -> Tensor:
    keys = (_key(draw.seed, draw.position) for draw in draws)
    return torch.tensor([[_signed(_mix(key ^ stream) if stream else key)] for key in keys], device=like.device)


def _noise(ids: Tensor, keys: Tensor) -> Tensor:
    words = _mix_tensor(ids * _signed(_GOLDEN) + keys)
    # 53 bits and a half step: strictly between 0 and 1.
    uniform = (_shifted(words, 11).double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log()


def _column(values: list[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device)[:, None]


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
