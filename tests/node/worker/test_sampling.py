"""Sampling against plain references, and that a row depends on nothing but itself."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from node.worker.sampling import BLOCK, SHORT_LIST, Draw, block_gumbel, gumbel, sample, survivors

VOCABULARY = 2000


def rows(count: int, spread: float, *, vocabulary: int = VOCABULARY, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def plain_survivors(logits: list[float], draw: Draw) -> list[int]:
    """Word for word: sort, keep the best k and their ties, then the fewest with a mass of p and their ties, then min-p."""
    scaled = [value / draw.temperature for value in logits]
    order = sorted(range(len(scaled)), key=lambda token: -scaled[token])
    if draw.top_k:
        least = scaled[order[min(draw.top_k, len(order)) - 1]]
        order = [token for token in order if scaled[token] >= least]
    top = scaled[order[0]]
    weights = [math.exp(scaled[token] - top) for token in order]
    total, mass = math.fsum(weights), 0.0
    if draw.top_p < 1:
        for index, weight in enumerate(weights):
            mass += weight / total
            if mass >= draw.top_p:
                least = scaled[order[index]]
                order = [token for token in order if scaled[token] >= least]
                break
    if draw.min_p:
        order = [token for token in order if scaled[token] >= top + math.log(draw.min_p)]
    return sorted(order)


def plain_token(logits: torch.Tensor, draw: Draw) -> int:
    """The best block by the sum over its survivors and its noise, then the best survivor in it."""
    kept = plain_survivors(logits.double().tolist(), draw)
    scaled = {token: float(logits[token]) / draw.temperature for token in kept}
    blocks: dict[int, float] = {}
    top = max(scaled.values())
    for token, value in scaled.items():
        blocks[token // BLOCK] = blocks.get(token // BLOCK, 0.0) + math.exp(value - top)
    noise = dict(zip(blocks, block_gumbel(torch.tensor(list(blocks)), draw.seed, draw.position).tolist(), strict=True))
    winner = max(blocks, key=lambda block: math.log(blocks[block]) + noise[block] if blocks[block] else -math.inf)
    inside = [token for token in kept if token // BLOCK == winner]
    near = dict(zip(inside, gumbel(torch.tensor(inside), draw.seed, draw.position).tolist(), strict=True))
    return max(inside, key=lambda token: scaled[token] + near[token])


@pytest.mark.parametrize("temperature", [5e-324, 1e-320, 1e-300, 1e-9])
def test_a_temperature_too_cold_to_divide_by_is_greedy(temperature):
    logits = rows(4, 3.0)
    draws = [Draw(temperature=temperature, top_k=50, top_p=0.9, seed=seed) for seed in range(4)]
    assert sample(logits, draws) == logits.argmax(-1).tolist()


CUTS = [
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (5, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 0.1, 0.0),
    (50, 0.9, 0.0),
    (SHORT_LIST, 0.95, 0.0),
    (SHORT_LIST + 1, 0.99, 0.0),
    (5000, 0.5, 0.0),
    (0, 0.9999, 0.0),
    (0, 1.0, 0.2),
    (0, 1.0, 0.0001),
    (50, 0.9, 0.3),
    (SHORT_LIST + 1, 0.99, 0.1),
    (SHORT_LIST + 1, 1.0, 0.01),
    (0, 0.5, 1.0),
]


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), CUTS)
@pytest.mark.parametrize("spread", [0.01, 1.0, 5.0])
def test_cuts_are_exact(top_k: int, top_p: float, min_p: float, spread: float) -> None:
    for seed in range(4):
        (logits,) = rows(1, spread, seed=seed)
        draw = Draw(temperature=0.7, top_k=top_k, top_p=top_p, min_p=min_p)
        assert survivors(logits, draw).tolist() == plain_survivors(logits.double().tolist(), draw)


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.5), (300, 1.0), (300, 0.5)])
def test_ties_survive_together(top_k: int, top_p: float) -> None:
    logits = torch.zeros(VOCABULARY)
    logits[::4] = 2.0
    draw = Draw(top_k=top_k, top_p=top_p)
    assert survivors(logits, draw).tolist() == plain_survivors(logits.tolist(), draw)


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), CUTS)
@pytest.mark.parametrize("spread", [0.0, 0.01, 1.0, 5.0])
def test_the_short_list_changes_nothing(top_k: int, top_p: float, min_p: float, spread: float) -> None:
    logits = rows(8, spread)
    draws = [Draw(temperature=0.9, top_k=top_k, top_p=top_p, min_p=min_p, seed=row, position=row) for row in range(8)]
    assert sample(logits, draws) == [plain_token(row, draw) for row, draw in zip(logits, draws, strict=True)]


def test_a_row_depends_on_itself_alone() -> None:
    logits = rows(16, 3.0)
    draws = [
        Draw(temperature=(row % 4) / 3, top_k=row % 3 * 20, top_p=1 - row % 5 / 10, min_p=row % 2 / 50, seed=row)
        for row in range(16)
    ]
    together = sample(logits, draws)
    assert together == [sample(logits[row : row + 1], [draws[row]])[0] for row in range(16)]
    assert together == sample(logits.flip(0), draws[::-1])[::-1]


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.tensor([[0.0, 3.0, 3.0, 1.0], [9.0, 0.0, 9.0, 9.0]])
    assert sample(logits, [Draw(temperature=0)] * 2) == [1, 0]


def chi_square(seen: torch.Tensor, expected: torch.Tensor) -> tuple[float, float]:
    """Pearson's statistic over classes of at least five expected hits, and what it exceeds once in 10,000 times."""
    order = expected.argsort(descending=True)
    seen, expected = seen[order].double(), expected[order].double()
    enough = int((expected >= 5).sum())
    assert enough >= 3
    rest = float(expected[enough:].sum())
    classes = list(zip(seen[:enough].tolist(), expected[:enough].tolist(), strict=True))
    if rest >= 5:
        classes.append((float(seen[enough:].sum()), rest))
    statistic = sum((hits - mean) ** 2 / mean for hits, mean in classes)
    freedom = len(classes) - 1
    # Wilson and Hilferty's approximation of the quantile.
    limit = freedom * (1 - 2 / (9 * freedom) + 3.719 * math.sqrt(2 / (9 * freedom))) ** 3
    return statistic, limit


@pytest.mark.parametrize("vocabulary", [5, 700])
@pytest.mark.parametrize(
    "draw",
    [
        Draw(),
        Draw(temperature=0.5),
        Draw(temperature=1.5, top_p=0.8),
        Draw(top_k=300),
        Draw(temperature=0.7, top_p=0.9, top_k=50),
        Draw(min_p=0.05),
    ],
)
def test_frequencies_follow_the_distribution(draw: Draw, vocabulary: int) -> None:
    count = 6000
    (logits,) = rows(1, 1.5, vocabulary=vocabulary, seed=3)
    kept = torch.tensor(plain_survivors(logits.double().tolist(), draw))
    expected = torch.zeros(vocabulary, dtype=torch.float64)
    expected[kept] = (logits.double()[kept] / draw.temperature).softmax(-1) * count
    draws = [replace(draw, seed=9, position=index) for index in range(count)]
    seen = torch.tensor(sample(logits.expand(count, -1), draws)).bincount(minlength=vocabulary)
    assert seen[expected == 0].sum() == 0
    statistic, limit = chi_square(seen, expected)
    assert statistic < limit


def test_seed_and_position_both_matter() -> None:
    logits = rows(1, 0.1)
    drawn = {sample(logits, [Draw(seed=seed, position=position)])[0] for seed in range(10) for position in range(10)}
    assert len(drawn) > 80


def test_noise_is_as_it_always_was() -> None:
    # Fixed for ever: nodes of different versions must draw the same.
    values = gumbel(torch.tensor([0, 1, 31999]), seed=42, position=7).tolist()
    assert values == pytest.approx(plain_gumbel([0, 1, 31999], seed=42, position=7), abs=1e-12)
    assert (
        gumbel(torch.tensor([3]), seed=-1, position=0).tolist() == gumbel(torch.tensor([3]), seed=2**64 - 1, position=0).tolist()
    )


def plain_gumbel(tokens: list[int], *, seed: int, position: int) -> list[float]:
    """The same in Python's integers: SplitMix64's finaliser over seed, position and token."""
    word = (1 << 64) - 1
    golden = 0x9E3779B97F4A7C15

    def finish(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & word
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & word
        return value ^ (value >> 31)

    key = finish((finish((seed + golden) & word) + position * golden + golden) & word)
    hashed = [finish((key + token * golden) & word) for token in tokens]
    return [-math.log(-math.log(((value >> 11) + 0.5) / 2**53)) for value in hashed]
