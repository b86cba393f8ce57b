import pytest
import trio

from gateway import report
from gateway.dispatch import Dispatch, DispatchLimits
from gateway.hedging import BURST, ENOUGH, LEAST_PATIENCE, MAX_MODELS, FirstTokens, Hedging
from gateway.routing.router import Router
from gateway.streams.token import ResumeToken
from mesh.errors import BackendFailed, Busy, MeshError
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage

DONE = Done("stop", Usage(3, 4), Performance(1.0, 2.0, 0.0, 100.0, 1))


def request(**more) -> InferenceRequest:
    return InferenceRequest(**{"request_id": "r1", "model": "m", "prompt": "hello", "task": "completion", **more})


def dispatch_of(mesh, **limits) -> Dispatch:
    dispatch = Dispatch(Router(mesh.gateway.registry, strategy="round_robin"), limits=DispatchLimits(**limits))
    for _ in range(ENOUGH):
        dispatch.hedging.first_tokens.saw("m", 0.1)
    return dispatch


def late(seconds: float, *, error: MeshError | None = None):
    async def step(request, emit):
        emit(Accepted(running=1))
        await trio.sleep(seconds)
        if error is not None:
            raise error
        for offset in range(4):
            emit(Delta(offset, [offset + 100], "abcd"[offset]))
            await trio.sleep(0.05)
        emit(DONE)

    return step


async def pair(mesh, first, second):
    """Two nodes as round robin takes them, with what each does."""
    one, two = sorted([await mesh.node(), await mesh.node()], key=lambda node: node.peer_id)
    one.script.append(first)
    two.script.append(second)
    return one, two


async def events_of(dispatch: Dispatch, **more) -> list:
    events: list = []
    await dispatch.infer(request(**more), events.append)
    return events


def check_one_answer(events: list, node) -> None:
    kinds = [type(event) for event in events]
    assert kinds == [Accepted, Delta, Delta, Delta, Delta, Done]
    assert [event.offset for event in events[1:-1]] == [0, 1, 2, 3]
    assert events[0].node == node.peer_id


async def test_when_the_first_token_is_late_the_second_node_answers_and_the_first_is_cancelled(autojump_clock, mesh):
    one, two = await pair(mesh, late(60.0), late(0.01))
    dispatch = dispatch_of(mesh)
    started = trio.current_time()
    events = await events_of(dispatch, hedge=True)
    assert trio.current_time() - started < 1.0
    check_one_answer(events, two)
    assert events[0].attempts == 2
    await one.ended.wait()
    assert (one.cancelled, two.cancelled) == (["r1"], [])
    assert report.status(dispatch)["hedged"] == {"requests": 1, "won": 1, "refused": 0}
    seen = dispatch.router.observations.of(one.peer_id, "m")
    # It did not fail, but it is not taken for fast either.
    assert (seen.failed, seen.in_flight, seen.breaker(trio.current_time())) == (0, 0, "closed")
    assert seen.ttft >= 0.1


async def test_a_first_node_that_is_a_little_late_still_wins_and_the_second_is_cancelled(autojump_clock, mesh):
    one, two = await pair(mesh, late(0.2), late(60.0))
    dispatch = dispatch_of(mesh)
    check_one_answer(await events_of(dispatch, hedge=True), one)
    await two.ended.wait()
    assert two.cancelled == ["r1"]
    assert (dispatch.hedging.hedged, dispatch.hedging.won) == (1, 0)


async def test_both_at_once_give_no_token_twice(autojump_clock, mesh):
    for number in range(10):
        one, two = await pair(mesh, late(0.2), late(0.0999 + number / 50_000))
        dispatch = dispatch_of(mesh)
        events = await events_of(dispatch, hedge=True)
        assert [event.offset for event in events[1:-1]] == [0, 1, 2, 3]
        assert sum(isinstance(event, Accepted | Done) for event in events) == 2
        assert dispatch.totals.succeeded == dispatch.totals.requests == 1
        for node in (one, two):
            node.kill()
        await mesh.until(lambda: not mesh.gateway.registry.nodes("m"))


def kept(seconds: float):
    """As `late`, by a node that keeps what it gives out."""

    async def step(request, emit):
        emit(Accepted(running=1, kept=True))
        await trio.sleep(seconds)
        for offset in range(4):
            emit(Delta(offset, [offset + 100], "abcd"[offset]))
        emit(DONE)

    return step


async def test_the_stream_is_named_after_the_winner_not_after_who_accepted_last(autojump_clock, mesh):
    one, two = await pair(mesh, kept(0.2), kept(60.0))
    events = await events_of(dispatch_of(mesh), hedge=True)
    check_one_answer(events, one)
    assert len(two.requests) == 1
    assert ResumeToken.parse(events[0].resume_token).names(one.peer_id)


async def test_in_time_no_second_node_is_asked(autojump_clock, mesh):
    _one, two = await pair(mesh, late(0.05), late(0.0))
    await events_of(dispatch_of(mesh), hedge=True)
    assert two.requests == []


@pytest.mark.parametrize(("gateway", "header", "hedged"), [(False, None, 0), (True, None, 1), (True, False, 0), (False, True, 1)])
async def test_it_is_opt_in(autojump_clock, mesh, gateway, header, hedged):
    _one, two = await pair(mesh, late(0.5), late(0.0))
    await events_of(dispatch_of(mesh, hedge=gateway), hedge=header)
    assert len(two.requests) == hedged


async def test_when_the_first_fails_the_second_goes_on(autojump_clock, mesh):
    one, two = await pair(mesh, late(0.2, error=BackendFailed("boom")), late(0.5))
    dispatch = dispatch_of(mesh)
    check_one_answer(await events_of(dispatch, hedge=True), two)
    assert dispatch.router.observations.of(one.peer_id, "m").failed == 1
    assert len(two.requests) == 1


async def test_when_the_second_fails_the_first_goes_on(autojump_clock, mesh):
    one, _two = await pair(mesh, late(0.5), late(0.01, error=Busy("full")))
    dispatch = dispatch_of(mesh)
    check_one_answer(await events_of(dispatch, hedge=True), one)
    assert len(one.requests) == 1


async def test_when_both_fail_a_third_is_asked_and_neither_again(autojump_clock, mesh, words):
    nodes = sorted([await mesh.node() for _ in range(3)], key=lambda node: node.peer_id)
    nodes[0].script.append(late(0.3, error=BackendFailed("boom")))
    nodes[2].script.append(late(0.01, error=BackendFailed("boom")))
    events = await events_of(dispatch_of(mesh), hedge=True)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "".join(words)
    assert [len(node.requests) for node in nodes] == [1, 1, 1]


async def test_the_winner_that_is_lost_is_continued_elsewhere(autojump_clock, mesh):
    async def dies(request, emit):
        for offset in range(2):
            emit(Delta(offset, [offset + 100], "ab"[offset]))
        await trio.sleep(0.01)
        raise BackendFailed("boom", code="worker_died")

    one, two = await pair(mesh, late(60.0), dies)
    dispatch = dispatch_of(mesh)
    events = await events_of(dispatch, hedge=True)
    assert [event.offset for event in events if isinstance(event, Delta)] == [0, 1, 2, 3]
    assert one.requests[-1].prior == [[100, 101]]
    assert dispatch.router.observations.of(two.peer_id, "m").failed == 1


async def test_a_client_that_leaves_cancels_both(autojump_clock, mesh):
    one, two = await pair(mesh, late(60.0), late(60.0))
    dispatch = dispatch_of(mesh)
    with trio.move_on_after(1.0):
        await events_of(dispatch, hedge=True)
    await one.ended.wait()
    await two.ended.wait()
    assert one.cancelled == two.cancelled == ["r1"]
    assert dispatch.totals.cancelled == 1
    assert dispatch.under_way == set()


async def test_a_broken_client_ends_both_with_its_own_error(autojump_clock, mesh):
    one, _two = await pair(mesh, late(60.0), late(0.01))
    dispatch = dispatch_of(mesh)

    def broken(event):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await dispatch.infer(request(hedge=True), broken)
    await one.ended.wait()
    assert dispatch.totals.failed == 1


async def test_a_full_or_sleeping_or_failing_node_is_no_second_one(autojump_clock, mesh):
    one, two = await pair(mesh, late(0.5), late(0.0))
    two.announce(running=4)
    dispatch = dispatch_of(mesh)
    await mesh.until(lambda: all(item.candidate.busy == 4 for item in dispatch.router.rank("m", without={one.peer_id})))
    await events_of(dispatch, hedge=True)
    assert two.requests == []
    two.announce("asleep")
    await mesh.sees(two, "asleep")
    one.script.append(late(0.5))
    await events_of(dispatch, hedge=True)
    assert two.requests == []


async def test_the_budget_bounds_how_many_are_hedged(autojump_clock, mesh):
    one, two = sorted([await mesh.node(), await mesh.node()], key=lambda node: node.peer_id)
    one.script += [late(0.3)] * 200
    two.script += [late(0.3)] * 200
    dispatch = dispatch_of(mesh)
    for _ in range(60):
        for _ in range(ENOUGH):
            dispatch.hedging.first_tokens.saw("m", 0.1)
        await events_of(dispatch, hedge=True)
    assert dispatch.hedging.hedged <= BURST + 60 * 0.05
    assert dispatch.hedging.budget.refused >= 60 - BURST - 3
    assert dispatch.totals.succeeded == 60


def test_too_few_first_tokens_say_nothing():
    seen = FirstTokens()
    for _ in range(ENOUGH - 1):
        seen.saw("m", 1.0)
    assert seen.late("m") is None
    seen.saw("m", 1.0)
    assert seen.late("m") == 1.0


def test_late_is_what_19_of_20_stay_below():
    seen = FirstTokens()
    for number in range(1000):
        seen.saw("m", (number % 100) / 100)
    assert seen.late("m") == 0.95


def test_models_are_bounded():
    seen = FirstTokens()
    for number in range(MAX_MODELS + 50):
        seen.saw(f"m{number}", 1.0)
    assert len(seen._seen) == MAX_MODELS


def test_patience_has_a_floor():
    hedging = Hedging(always=True)
    for _ in range(ENOUGH):
        hedging.first_tokens.saw("m", 0.0001)
    assert hedging.patience(request()) == LEAST_PATIENCE
