"""What is a flip and what is a real difference, on rows of scores that are made for it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from node.worker.sampling import BLOCK, Draw, gumbel
from tests.chaos.flips import MARGIN, Position, Vocabulary, _drawn, _row, flipped

END = b"<end>"
NAMES = [f"t{number}." for number in range(2 * BLOCK)]
VOCABULARY = Vocabulary({END: 0, **{name.encode(): number for number, name in enumerate(NAMES) if number}}, END)
GREEDY = Draw(temperature=0.0)
SAMPLED = Draw(temperature=0.8, top_k=50, top_p=0.9, seed=7)
LESS, MORE = MARGIN / 4, MARGIN * 4


def position(token: str, **scores: float) -> Position:
    """`scores` by the names of tokens; `end` is the last one."""
    spelled = {(END if name == "end" else f"{name}.".encode()): score for name, score in scores.items()}
    ranked = sorted(spelled.items(), key=lambda item: -item[1])
    return Position(END if token == "end" else f"{token}.".encode(), tuple(ranked))


SURE = position("t1", t1=-0.01, t2=-5.0)


def is_flip(run: list[Position], text: str, **options: Any) -> bool:
    return flipped(run, text, **{"ended": False, "draw": GREEDY, "vocabulary": VOCABULARY, "most": 9, **options})


@pytest.mark.parametrize(("apart", "expected"), [(LESS, True), (MORE, False)], ids=["within", "beyond"])
def test_a_greedy_flip_is_between_two_tokens_that_are_as_good(apart: float, expected: bool) -> None:
    run = [SURE, position("t3", t3=-1.0, t4=-1.0 - apart, t5=-3.0), SURE]
    assert is_flip(run, "t1.t4.and so on") == expected
    assert not is_flip(run, "t1.t5.t1."), "that one was no candidate"
    assert not is_flip(run, "t1.t6.t1."), "of that one nothing was told"
    assert not is_flip(run, "t2.t4.t1."), "it parts before"


def test_an_answer_that_is_the_run_has_no_flip() -> None:
    assert not is_flip([SURE, SURE], "t1.t1.")


@pytest.mark.parametrize(("apart", "expected"), [(LESS, True), (MORE, False)], ids=["within", "beyond"])
def test_the_end_may_be_flipped_both_ways(apart: float, expected: bool) -> None:
    early = [SURE, position("t3", t3=-1.0, end=-1.0 - apart)]
    assert is_flip(early, "t1.", ended=True) == expected
    assert not is_flip(early, "t1.", ended=False), "it was cut off"
    assert not is_flip(early, "t1.", ended=True, least=2), "there it could not end"
    late = [SURE, position("end", end=-1.0, t3=-1.0 - apart)]
    assert is_flip(late, "t1.t3.t1.") == expected
    assert not is_flip(late, "t1.t3.", most=1), "it was not to go on"


def noise(token: int, place: int) -> float:
    return float(gumbel(torch.tensor([token]), SAMPLED.seed, place)[0])


@pytest.mark.parametrize(("apart", "expected"), [(LESS, True), (MORE, False)], ids=["within", "beyond"])
def test_a_sampled_flip_is_between_two_scores_with_their_noise(apart: float, expected: bool) -> None:
    place = 1
    right, wrong = (3, 4) if noise(3, place) > noise(4, place) else (4, 3)
    lead = noise(right, place) - noise(wrong, place)
    # The better one by its noise is the less likely one by just so much that it wins by `apart`.
    scores = {f"t{right}": -1.0, f"t{wrong}": -1.0 + (lead - apart) * SAMPLED.temperature}
    draw = replace(SAMPLED, top_p=1.0)
    run = [SURE, position(f"t{right}", **scores)]
    assert is_flip(run, f"t1.t{wrong}.x", draw=draw) == expected


def test_a_block_of_tokens_may_be_flipped() -> None:
    draw = replace(SAMPLED, top_p=1.0, top_k=0)
    far = BLOCK + 5

    def drawn(score: float) -> bool:
        run = [SURE, position("t3", t3=-1.0, **{f"t{far}": score})]
        return is_flip(run, f"t1.t{far}.", draw=draw)

    def wins(score: float) -> bool:
        run = [SURE, position(f"t{far}", t3=-1.0, **{f"t{far}": score})]
        return is_flip(run, "t1.t3.", draw=draw)

    low, high = -30.0, 30.0
    # Where the other block begins to win: just below it is a flip, and just above the other way round.
    while high - low > MARGIN / 100:
        middle = (low + high) / 2
        row = _row(position("t3", t3=-1.0, **{f"t{far}": middle}), VOCABULARY, may_end=True)
        low, high = (low, middle) if _drawn(row, replace(draw, position=1)) == far else (middle, high)
    assert drawn(low - LESS)
    assert not drawn(low - MORE)
    assert wins(high + LESS)
    assert not wins(high + MORE)


def test_the_edge_of_the_nucleus_may_be_flipped() -> None:
    """The last token of a nucleus is in it or not."""
    draw = replace(SAMPLED, temperature=1.0, seed=seed_that_takes(4))
    for inside, expected in ((0.9 - MARGIN / 4, True), (0.9 - 0.01, False)):
        # With the first alone below the edge the second belongs to it; both together are everything.
        scores = {"t3": math.log(inside), "t4": math.log(1 - inside)}
        run = [SURE, position("t4", **scores)]
        assert is_flip(run, "t1.t3.", draw=draw) == expected


def seed_that_takes(token: int) -> int:
    """One whose noise prefers this token to a ninefold likelier one, at the second place."""
    for seed in range(1000):
        first, second = gumbel(torch.tensor([3, token]), seed, 1).tolist()
        if second - first > math.log(9) + 0.5:
            return seed
    raise AssertionError("no such seed")


def test_what_the_sampler_would_not_have_drawn_shows_nothing() -> None:
    run = [SURE, position("t4", t3=-0.001, t4=-0.001 - 5 * MARGIN)]
    assert not is_flip(run, "t1.t3.")
