"""Whether an answer differs from the undisturbed run only by a flip: another token where two were all but equal.

1. A flip is shown, not guessed: from what the engine says of a position, its own sampler draws the undisturbed run's token, and
   the answer's token once two scores, or the edge of the nucleus, are moved by at most `MARGIN`. All else is a real difference.
2. The engine tells the `TOLD` likeliest tokens of a position; another token than these is no flip.
3. Texts may part later than tokens, so every position up to there is looked at. Behind a flip everything may differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer

from node.models import demo_model_path
from node.worker.output.vocabulary import TokenBytes
from node.worker.sampling import BLOCK, Draw, sample

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

MARGIN = 1e-4
TOLD = 20
_UNLIKELY = -1e4
"""The score of a token of which nothing was told."""


@dataclass(frozen=True)
class Position:
    """One position of the undisturbed run: its token, and the likeliest tokens there with the logs of their probabilities."""

    token: bytes
    likeliest: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Vocabulary:
    """The ids of tokens by their bytes, and the one that ends an answer."""

    ids: dict[bytes, int]
    end: bytes

    @classmethod
    def of_demo(cls) -> Vocabulary:
        """The demo model's."""
        tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
        spelling = TokenBytes(tokenizer)
        return cls({spelling[token]: token for token in range(len(tokenizer))}, tokenizer.eos_token.encode())


def flipped(
    run: Sequence[Position], text: str, *, ended: bool, draw: Draw, vocabulary: Vocabulary, least: int = 0, most: int
) -> bool:
    """Whether an answer of `text` parts from the run in a flip. `ended`: by itself; `least`, `most`: tokens that were asked for.

    The run's last position is that of its end where it ended by itself.
    """
    said = text.encode()
    for number, (before, position) in enumerate(_prefixes(run)):
        if not said.startswith(before) or number >= most:
            return False
        others = _others(position, said[len(before) :], vocabulary, ended=ended and said == before)
        row = _row(position, vocabulary, may_end=number >= least)
        if any(_flips(row, position, other, replace(draw, position=number), vocabulary) for other in others):
            return True
    return False


def _prefixes(run: Sequence[Position]) -> Iterator[tuple[bytes, Position]]:
    before = b""
    for position in run:
        yield before, position
        before += position.token


def _others(position: Position, rest: bytes, vocabulary: Vocabulary, *, ended: bool) -> list[bytes]:
    """The tokens that the answer may have had there instead."""
    likely = [token for token, _ in position.likeliest if token != position.token]
    return [token for token in likely if (ended if token == vocabulary.end else token and rest.startswith(token))]


def _row(position: Position, vocabulary: Vocabulary, *, may_end: bool) -> Tensor:
    row = torch.full((max(vocabulary.ids.values()) + 1,), _UNLIKELY, dtype=torch.float64)
    for token, score in position.likeliest:
        if token in vocabulary.ids and (may_end or token != vocabulary.end):
            row[vocabulary.ids[token]] = score
    return row


def _flips(row: Tensor, position: Position, other: bytes, draw: Draw, vocabulary: Vocabulary) -> bool:
    right, wrong = vocabulary.ids.get(position.token), vocabulary.ids.get(other)
    if right is None or wrong is None or _drawn(row, draw) != right:
        return False
    return any(_drawn(*moved) == wrong for moved in _moved(row, right, wrong, draw))


def _drawn(row: Tensor, draw: Draw) -> int:
    return sample(row[None], [draw])[0]


def _moved(row: Tensor, right: int, wrong: int, draw: Draw) -> Iterator[tuple[Tensor, Draw]]:
    """What may have been seen instead of this row: the two tokens, or their blocks, closer by the margin."""
    half = MARGIN / 2 * (1.0 if draw.greedy else draw.temperature)
    ids = torch.arange(row.shape[0])
    for up, down in ((ids == wrong, ids == right), (ids // BLOCK == wrong // BLOCK, ids // BLOCK == right // BLOCK)):
        moved = row + half * up.double() - half * down.double()
        for edge in (0.0, -MARGIN, MARGIN):
            yield moved, replace(draw, top_p=min(1.0, draw.top_p + edge) if draw.top_p < 1 else 1.0)
