"""Extents never overlap, are as large as asked for, and a full context always fits into an empty room."""

from __future__ import annotations

import itertools
import random

import pytest

from node.worker.cache.extents import Extent, Extents


def overlapping(extents: list[Extent]) -> bool:
    ordered = sorted(extents, key=lambda extent: extent.start)
    return any(before.start + before.capacity > after.start for before, after in itertools.pairwise(ordered))


def test_small_ones_share_a_slab_side_by_side() -> None:
    room = Extents(slab=1000, slabs=2, least=100)
    taken = [room.take(100) for _ in range(8)]
    assert [(extent.slab, extent.start, extent.capacity) for extent in taken if extent] == [
        (0, 125 * index, 125) for index in range(8)
    ]
    assert all(extent and extent.base == 0 for extent in taken)


def test_other_sizes_take_other_slabs_and_then_what_is_larger() -> None:
    room = Extents(slab=1000, slabs=2, least=100)
    small, large = room.take(10), room.take(500)
    assert small
    assert large
    assert (small.slab, large.slab) == (0, 1)
    medium = room.take(250)
    assert medium
    assert (medium.slab, medium.capacity) == (1, 500)
    assert room.take(250) is None
    assert room.take(10)


def test_a_slab_that_is_empty_again_is_cut_anew() -> None:
    room = Extents(slab=1000, slabs=1, least=100)
    extent = room.take(10)
    assert extent
    assert room.take(1000) is None
    room.give(extent)
    assert room.take(1000) == Extent(0, 0, 0, 1000)


def test_more_than_the_context_never_fits() -> None:
    assert Extents(slab=1000, slabs=4).take(1001) is None


@pytest.mark.parametrize("seed", range(5))
def test_whatever_is_taken_and_given_nothing_overlaps(seed: int) -> None:
    source = random.Random(seed)
    room = Extents(slab=999, slabs=5, least=50)
    taken: list[Extent] = []
    for _ in range(2000):
        if taken and source.random() < 0.5:
            room.give(taken.pop(source.randrange(len(taken))))
            continue
        length = source.choice((1, 60, 300, 999))
        extent = room.take(length)
        if extent is None:
            assert taken
            continue
        assert extent.capacity >= length
        assert 0 <= extent.start <= extent.start + extent.capacity <= room.tokens
        taken.append(extent)
        assert not overlapping(taken)
    for extent in taken:
        room.give(extent)
    assert all(room.take(999) for _ in range(5))


def test_undoing_a_give_leaves_everything_as_it_was() -> None:
    room = Extents(slab=100, slabs=1, least=100)
    extent = room.take(1)
    assert extent
    room.give(extent)
    room.retake(extent)
    assert room.take(1) is None
