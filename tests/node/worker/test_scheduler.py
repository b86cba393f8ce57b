"""Who is computed when: budgets, whole prompts, pieces, slots kept together."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.errors import Busy
from node.worker.scheduler import Move, Scheduler, Share
from node.worker.sequence import Sequence


def sequence(prompt: int, number: int = 0) -> Sequence:
    return Sequence(number=number, tokens=[1] * prompt, prompt_length=prompt, choice=None)  # type: ignore[arg-type]


def scheduler(*prompts: int, slots: int = 4, budget: int = 16, queue_limit: int = 100) -> tuple[Scheduler, list[Sequence]]:
    made = Scheduler(slots=slots, budget=budget, queue_limit=queue_limit)
    sequences = [sequence(prompt, number) for number, prompt in enumerate(prompts)]
    for each in sequences:
        made.enqueue(each)
    return made, sequences


def step(made: Scheduler) -> list[tuple[int, int]]:
    """Plan and pretend to compute; (number, count) of each share."""
    plan = made.plan()
    result = [(share.sequence.number, share.count) for share in plan]
    for share in plan:
        completes = share.completes
        share.sequence.computed += share.count
        if completes:
            share.sequence.append(1)
    return result


def test_several_whole_prompts_share_a_step() -> None:
    made, _ = scheduler(5, 6, 4, 9)
    assert step(made) == [(0, 5), (1, 6), (2, 4)]
    assert step(made) == [(0, 1), (1, 1), (2, 1), (3, 9)]


def test_only_what_is_longer_than_a_step_is_cut() -> None:
    made, _ = scheduler(10, 12, 40, slots=4, budget=16)
    assert step(made) == [(0, 10)]
    assert step(made) == [(0, 1), (1, 12)]
    assert step(made) == [(0, 1), (1, 1), (2, 14)]
    assert step(made) == [(0, 1), (1, 1), (2, 14)]
    assert step(made) == [(0, 1), (1, 1), (2, 12)]


def test_decoding_is_never_left_out() -> None:
    made, _ = scheduler(*[3] * 8, 500, slots=9, budget=10)
    decoding: set[int] = set()
    for _ in range(30):
        counts = dict(step(made))
        assert sum(counts.values()) <= 10
        assert decoding <= counts.keys()
        decoding = {each.number for each in made.active if each.pending == 1}
    assert decoding >= set(range(8))


def test_budget_below_the_slots_is_raised() -> None:
    made, _ = scheduler(*[2] * 8, slots=8, budget=1)
    for _ in range(20):
        last = step(made)
    assert len(last) == 8


def test_the_last_slot_moves_into_the_gap() -> None:
    made, sequences = scheduler(3, 4, 5)
    step(made)
    assert [each.slot for each in sequences] == [0, 1, 2]
    assert made.remove(sequences[0]) == Move(source=2, target=0, length=5)
    assert made.remove(sequences[1]) is None
    assert made.active == [sequences[2]]
    assert sequences[2].slot == 0


def test_a_waiting_sequence_leaves_without_a_move() -> None:
    made, sequences = scheduler(3, 4, slots=1)
    step(made)
    assert made.remove(sequences[1]) is None
    assert not made.waiting


def test_the_queue_is_bounded() -> None:
    made, _ = scheduler(1, 1, queue_limit=2)
    with pytest.raises(Busy):
        made.enqueue(sequence(1))


def test_a_single_token_prompt_is_like_a_decoding_row() -> None:
    made, _ = scheduler(1, 8)
    plan: list[Any] = made.plan()
    assert [(share.sequence.number, share.count) for share in plan] == [(0, 1), (1, 8)]
    assert Share(sequence(1), 1).completes


def test_rewound_sequences_are_computed_from_the_start() -> None:
    made, _ = scheduler(6)
    step(made)
    step(made)
    made.rewind()
    assert step(made) == [(0, 8)]
