"""What is kept of one request, and what came before a position."""

from __future__ import annotations

import pytest

from mesh.messages.inference import Delta
from node.output_log import PAGE, OutputLog


def read(log: OutputLog, index: int) -> list[Delta]:
    found: list[Delta] = []
    while page := log.page(index + len(found)):
        found += page
    return found


def written(count: int, log: OutputLog) -> list[Delta]:
    deltas = [Delta(at, [at + 7], f"t{at} ", reasoning="r" if at % 5 == 0 else "") for at in range(count)]
    for delta in deltas:
        log.add(delta)
    return deltas


@pytest.mark.parametrize("count", [0, 1, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE + 5])
def test_all_that_went_in_comes_out_from_everywhere(count):
    log = OutputLog()
    deltas = written(count, log)
    for index in {0, count // 2, max(0, count - 1), count}:
        assert read(log, index) == deltas[index:]
    assert log.tokens == count


def test_packed_pages_take_little_memory():
    log = OutputLog()
    grown = [log.add(Delta(at, [at + 30_000], " word")) for at in range(1000)]
    assert sum(grown) < 60_000
    assert sum(map(bool, grown)) == 1000 // PAGE


def test_before_a_position_stand_ids_characters_and_ends_by_choice():
    log = OutputLog([[1, 2], [3]])
    assert (log.first, log.tokens) == (3, 3)
    log.add(Delta(2, [4], "ab", choice=0))
    log.add(Delta(1, [5], "c", choice=1))
    log.add(Delta(3, [], "", choice=0, finish_reason="stop"))
    log.add(Delta(2, [6], "d", choice=1))
    found = log.before(5)
    assert found is not None
    assert (found.token_ids, found.characters, found.ended) == ([[1, 2, 4], [3, 5]], [2, 1], [])
    assert [delta.finish_reason for delta in log.page(found.index)] == ["stop", None]
    later = log.before(6)
    assert later is not None
    assert (later.token_ids, later.ended, log.page(later.index)) == ([[1, 2, 4], [3, 5, 6]], [(0, "stop")], [])


@pytest.mark.parametrize("position", [0, 1, 6])
def test_a_position_that_is_not_there_has_nothing_before_it(position):
    log = OutputLog([[1, 2]])
    written(3, log)
    assert log.before(position) is None


def test_a_position_inside_an_event_stands_for_the_event():
    log = OutputLog()
    log.add(Delta(0, [1], "a"))
    log.add(Delta(1, [2, 3, 4], "bcd"))
    found = log.before(3)
    assert found is not None
    assert (found.index, found.token_ids) == (1, [[1]])
