"""What one attempt passes on, and what is held back of an answer in one piece."""

from __future__ import annotations

import pytest
import trio

from gateway import delivery
from gateway.attempt import Attempt
from gateway.delivery import Delivery
from gateway.observations import Observation
from mesh.errors import BackendFailed, TimedOut
from mesh.messages.inference import Accepted, Delta, Done, Performance, Usage
from mesh.service import paced

DONE = Done("stop", Usage(1, 2), Performance(1.0, 2.0, 3.0, 4.0, 1))


def delta(offset: int, text: str = "x") -> Delta:
    return Delta(offset, [offset], text)


@pytest.fixture
def got() -> list:
    return []


@pytest.fixture
def trying(got):
    def build(*, streamed: bool = True, **more) -> Attempt:
        delivery = Delivery(got.append, streamed=streamed)
        return Attempt("node", delivery, more.pop("seen", None) or Observation(), first_token=10.0, stall=20.0, **more)

    return build


async def test_nothing_is_passed_on_after_the_time_limit(trying, got):
    late = trying()
    late.scope.cancel()
    for event in (Accepted(), delta(0), DONE):
        late.emit(event)
    assert got == []


async def test_a_node_that_returns_without_an_end_has_failed(trying):
    with pytest.raises(BackendFailed, match="without ending"):
        trying().check()


@pytest.mark.parametrize(("events", "says"), [([Accepted()], "no first token within 10 s"), ([delta(0)], "no token for 20 s")])
async def test_a_time_limit_says_what_was_waited_for(autojump_clock, trying, events, says):
    await trio.sleep(1)
    slow = trying()
    for event in events:
        slow.emit(event)
    with slow.scope:
        await trio.sleep_forever()
    with pytest.raises(TimedOut, match=says):
        slow.check()


async def test_an_answer_in_one_piece_comes_with_its_end(trying, got):
    whole = trying(streamed=False)
    whole.emit(delta(0))
    whole.emit(delta(1))
    assert got == []
    whole.emit(DONE)
    assert [type(event) for event in got] == [Accepted, Delta, Delta, Done]


@pytest.mark.parametrize(("name", "bound", "text"), [("MAX_HELD", 6, ""), ("MAX_HELD_CHARACTERS", 50, "x" * 10)])
async def test_what_is_held_back_has_a_bound_and_nothing_is_lost(trying, got, monkeypatch, name, bound, text):
    monkeypatch.setattr(delivery, name, bound)
    long = trying(streamed=False)
    for offset in range(5):
        long.emit(delta(offset, text))
    assert got == []
    for offset in range(5, 8):
        long.emit(delta(offset, text))
    long.emit(DONE)
    assert [event.offset for event in got[1:-1]] == list(range(8))
    assert (type(got[0]), got[-1]) == (Accepted, DONE)


async def test_a_client_that_reads_slowly_is_not_the_nodes_fault(autojump_clock, got):
    async def slow_client():
        await trio.sleep(100)

    await trio.sleep(1)
    slow = Attempt("node", Delivery(paced(got.append, slow_client)), Observation(), first_token=10.0, stall=20.0)
    slow.emit(delta(0))
    with slow.scope:
        await slow.room()
        assert trio.current_time() + 20.0 == slow.scope.deadline
        slow.emit(delta(1))
        await trio.sleep_forever()
    assert len(got) == 3
    with pytest.raises(TimedOut, match="no token for 20 s"):
        slow.check()


async def test_a_model_that_may_have_to_wake_has_the_time_that_its_node_gives_it(autojump_clock, trying, got):
    seen = Observation()
    waking = trying(may_sleep=True, seen=seen)
    with waking.scope:
        await trio.sleep(500)
        for event in (Accepted(), delta(0), DONE):
            waking.emit(event)
    waking.check()
    assert got[-1] == DONE
    assert seen.ttft == 0


async def test_once_it_is_awake_it_has_no_longer_than_others(autojump_clock, trying):
    awake = trying(may_sleep=True)
    with awake.scope:
        await trio.sleep(500)
        awake.emit(Accepted())
        await trio.sleep(11)
    with pytest.raises(TimedOut, match="no first token within 10 s"):
        awake.check()
