"""Who is computed when: budgets, whole prompts, pieces, priorities, and who gives way when the cache is full."""

from __future__ import annotations

from typing import Any

import pytest

from mesh.errors import Busy
from node.worker.cache.extents import Extents
from node.worker.cache.memory import Memory, Nowhere
from node.worker.cache.radix import RadixCache
from node.worker.pace import LEAST_TOKENS, Pace
from node.worker.scheduler import Scheduler, Share
from node.worker.sequence import Sequence


def sequence(prompt: int, number: int = 0, *, priority: int = 0) -> Sequence:
    return Sequence(
        number=number,
        tokens=[1000 * number + place for place in range(prompt)],
        prompt_length=prompt,
        choice=None,  # type: ignore[arg-type]
        priority=priority,
        arrived=float(number),
    )


def empty_scheduler(
    *,
    slots: int = 4,
    budget: int = 16,
    queue_limit: int = 100,
    slab: int = 1024,
    slabs: int = 8,
    pool: int = 0,
    pace: Pace | None = None,
) -> Scheduler:
    memory = Memory(Extents(slab=slab, slabs=slabs, least=8), RadixCache(start=slab * slabs, pool=pool, least=1), Nowhere())
    return Scheduler(memory, pace or Pace(), slots=slots, budget=budget, queue_limit=queue_limit)


def scheduler(*prompts: int, **options: Any) -> tuple[Scheduler, list[Sequence]]:
    made = empty_scheduler(**options)
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
            share.sequence.tokens.append(1)
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
    made, _ = scheduler(*[3] * 8, 500, slots=9, budget=10, slabs=9)
    decoding: set[int] = set()
    for _ in range(30):
        counts = dict(step(made))
        assert sum(counts.values()) <= 10
        assert decoding <= counts.keys()
        decoding = {each.number for each in made.active if each.pending == 1}
    assert decoding >= set(range(8))


def test_beside_decoding_a_prompt_gets_what_its_pace_allows() -> None:
    pace = Pace(stretch=3.0)
    made, _ = scheduler(4, 900, budget=512, pace=pace)
    assert step(made) == [(0, 4)]
    pace.measure(prompt_tokens=1000, decoding=False, seconds=1.0)
    pace.measure(prompt_tokens=0, decoding=True, seconds=0.05)
    # Two more times 50 ms, at half of 1000 tokens a second.
    assert step(made) == [(0, 1), (1, 50)]
    for _ in range(100):
        pace.measure(prompt_tokens=0, decoding=True, seconds=1e-6)
    assert step(made) == [(0, 1), (1, LEAST_TOKENS)]


def test_a_crowd_is_let_in_at_full_speed() -> None:
    pace = Pace(stretch=3.0)
    made, _ = scheduler(*[4] * 7, *[40] * 4, slots=11, budget=64, pace=pace)
    pace.measure(prompt_tokens=1000, decoding=False, seconds=1.0)
    pace.measure(prompt_tokens=0, decoding=True, seconds=0.01)
    assert step(made) == [(number, 4) for number in range(7)]
    readers = [(number, 1) for number in range(7)]
    # Four begin beside seven, then three beside eight, then two beside nine, which is no crowd any more.
    assert step(made) == [*readers, (7, 40)]
    assert step(made) == [*readers, (7, 1), (8, 40)]
    assert step(made) == [*readers, (7, 1), (8, 1), (9, 10)]


def test_budget_below_the_slots_is_raised() -> None:
    made, _ = scheduler(*[2] * 8, slots=8, budget=1)
    for _ in range(20):
        last = step(made)
    assert len(last) == 8


def test_a_higher_priority_waits_less_and_equals_keep_their_order() -> None:
    made = empty_scheduler(slots=1, budget=64)
    for number, priority in enumerate((0, 0, 5, 0, 5)):
        made.enqueue(sequence(3, number, priority=priority))
    order = []
    while made.waiting or made.active:
        step(made)
        order.append(made.active[0].number)
        made.remove(made.active[0], keep=True)
    assert order == [2, 4, 0, 1, 3]


def test_a_waiting_sequence_leaves() -> None:
    made, sequences = scheduler(3, 4, slots=1)
    step(made)
    made.remove(sequences[1], keep=True)
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


def test_rewound_sequences_are_computed_from_the_start_in_their_order() -> None:
    made, _ = scheduler(6, 5)
    step(made)
    step(made)
    made.rewind()
    assert [each.number for each in made.waiting] == [0, 1]
    assert not made.active
    made._memory.rebuild()
    assert step(made) == [(0, 8), (1, 7)]


def test_who_came_last_gives_way_when_another_must_grow() -> None:
    made, sequences = scheduler(7, 7, slab=16, slabs=1, slots=2)
    assert step(made) == [(0, 7), (1, 7)]
    assert step(made) == [(0, 1), (1, 1)]
    # The ninth token of either needs the whole slab.
    assert step(made) == [(0, 1)]
    assert (made.preemptions, sequences[1].extent, sequences[1].computed) == (1, None, 0)
    assert [each.number for each in made.waiting] == [1]
    while sequences[0].generated < 8:
        assert step(made) == [(0, 1)]
    made.remove(sequences[0], keep=True)
    assert step(made) == [(1, 9)]


def test_a_lower_priority_gives_way_even_if_it_came_first() -> None:
    made = empty_scheduler(slab=16, slabs=1, slots=2)
    made.enqueue(sequence(7, 0))
    made.enqueue(sequence(7, 1, priority=1))
    assert step(made) == [(1, 7), (0, 7)]
    assert step(made) == [(1, 1), (0, 1)]
    assert step(made) == [(1, 1)]


def test_a_preempted_sequence_finds_a_place_in_a_full_queue_and_its_prefix_in_the_cache() -> None:
    made, sequences = scheduler(7, 7, slab=16, slabs=1, slots=2, queue_limit=2, pool=64)
    for _ in range(2):
        step(made)
    for number in (2, 3):
        made.enqueue(sequence(5, number))
    step(made)
    assert [each.number for each in made.waiting] == [1, 2, 3]
    made.remove(sequences[0], keep=True)
    # Of its nine tokens eight were computed before it gave way.
    assert dict(step(made))[1] == 1


def test_a_step_that_was_too_large_shrinks_until_one_token_is_left() -> None:
    made, _ = scheduler(*[40] * 4, slots=4, budget=64)
    sizes = []
    tokens = sum(count for _, count in [(share.sequence.number, share.count) for share in made.plan()])
    while made.shrink(tokens):
        tokens = sum(share.count for share in made.plan())
        sizes.append(tokens)
        assert len(sizes) < 20
    assert sizes[-1] <= 2
    assert len(made.active) == 1
    grown = 0
    while not made.grow():
        grown += 1
    assert 0 < grown < 20
    assert sum(share.count for share in made.plan()) == 40
