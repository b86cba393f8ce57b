from __future__ import annotations

from mesh.relay import ledger
from mesh.relay.ledger import Ledger


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_a_pair_has_one_account_whoever_of_the_two_asks():
    book = Ledger(100, 60, Clock())
    assert book.spend("a", "b", 60)
    assert book.wait("b", "a") == 0
    assert not book.spend("b", "a", 60)
    assert book.wait("a", "b") == 60
    assert book.spend("a", "c", 60)


def test_a_new_window_is_a_new_account():
    clock = Clock()
    book = Ledger(100, 60, clock)
    book.spend("a", "b", 100)
    clock.now += 59
    assert book.wait("a", "b") == 1
    clock.now += 1
    assert book.wait("a", "b") == 0
    assert book.spend("a", "b", 100)


def test_it_remembers_a_bounded_number_of_pairs_and_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr(ledger, "MAX_PAIRS", 2)
    clock = Clock()
    book = Ledger(100, 60, clock)
    for other in ("b", "c", "d"):
        book.spend("a", other, 100)
        clock.now += 1
    assert [book.wait("a", other) > 0 for other in ("b", "c", "d")] == [False, True, True]
