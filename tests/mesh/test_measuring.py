"""Asking a peer how it is: one message each way, a bound for the wait, nothing kept for those who only talk."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import trio

from mesh.measuring import FEATURE, FRESH, Measuring
from mesh.messages.metrics import CpuFigures, Measure, Measured, MemoryFigures, NodeMetrics


def metrics(cores: int = 1) -> NodeMetrics:
    return NodeMetrics(cpu=CpuFigures(core_count=cores), memory=MemoryFigures())


class Wire:
    """A link whose other side is `far`, if there is one."""

    def __init__(self, *features: str) -> None:
        self.peer_id = "other"
        self.hello = SimpleNamespace(features=features)
        self.closed = trio.Event()
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


async def test_a_question_is_answered_with_the_own_figures(autojump_clock):
    asking, asked, wire, back = Measuring(), Measuring(), Wire(FEATURE), Wire(FEATURE)
    asked.measure = metrics
    assert (asking.features, asked.features) == ([], [FEATURE])
    found = []

    async def ask() -> None:
        found.append(await asking.ask(wire))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(ask)
        await trio.sleep(0.1)
        assert wire.sent == [Measure()]
        asked.hear(back, wire.sent[0])
        asking.hear(wire, back.sent[0])
    assert found == [metrics()] * 3
    assert not asking._waiting
    # The next question is a new one.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.1)
        assert len(wire.sent) == 2
        asking.hear(wire, Measured(metrics(2)))
    assert found[-1] == metrics(2)


async def test_who_does_not_answer_in_time_has_none(autojump_clock):
    asking, wire = Measuring(), Wire(FEATURE)
    assert await asking.ask_all([wire]) == {}
    assert not asking._waiting


async def test_an_old_peer_is_not_asked_and_a_closed_link_neither(autojump_clock):
    asking, old, closed = Measuring(), Wire(), Wire(FEATURE)
    closed.closed.set()
    assert await asking.ask_all([old, closed]) == {}
    assert old.sent == closed.sent == []


async def test_answers_that_nobody_waits_for_are_dropped():
    asking, wire = Measuring(), Wire(FEATURE)
    for _ in range(10):
        asking.hear(wire, Measured(metrics()))
    assert not asking._waiting
    assert wire.sent == []


async def test_figures_are_not_taken_anew_for_each_of_many_questions(autojump_clock):
    asked, wire, taken = Measuring(), Wire(FEATURE), []
    asked.measure = lambda: taken.append(1) or metrics()
    for _ in range(100):
        asked.hear(wire, Measure())
    assert (len(taken), len(wire.sent)) == (1, 100)
    await trio.sleep(FRESH)
    asked.hear(wire, Measure())
    assert len(taken) == 2


async def test_a_peer_without_figures_does_not_answer():
    silent, wire = Measuring(), Wire(FEATURE)
    silent.hear(wire, Measure())
    assert wire.sent == []
