"""Waits between tries: doubling, jittered, bounded."""

from __future__ import annotations

from mesh.backoff import Backoff


def test_waits_double_up_to_the_longest_and_are_jittered():
    for _ in range(50):
        backoff = Backoff(first=0.5, longest=30)
        for bound in (0.5, 1, 2, 4, 8, 16, 30, 30, 30):
            assert bound / 2 <= backoff.next() <= bound


def test_two_that_fail_together_do_not_try_together():
    assert len({Backoff().next() for _ in range(50)}) > 40


def test_reset_and_giving_up_for_long():
    backoff = Backoff(first=1, longest=8)
    backoff.give_up_for_long()
    assert backoff.next() >= 4
    backoff.reset()
    assert backoff.next() <= 1
