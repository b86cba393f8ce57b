"""Nodes that beat on and do nothing."""

from __future__ import annotations

import itertools

import pytest
import trio

from gateway import stall
from gateway.dispatch import Dispatch, DispatchLimits
from gateway.routing.router import Router
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.link import ModelLoad

DONE = Done("stop", Usage(1, 6), Performance(1.0, 2.0, 0.0, 100.0, 1))


class Engine:
    """A node's engine: its counter goes up while it works."""

    def __init__(self, node) -> None:
        self.node = node
        self.knows_tokens = True
        self.gap = 0.1
        self.counts = True
        self.step = 100
        self.hangs = trio.Event()
        node.script += [self.answer] * 20

    async def answer(self, request, emit) -> None:
        emit(Accepted(running=1))
        begun = request.said.pieces if request.said is not None else sum(map(len, request.prior))
        for offset in range(begun, 6):
            if self.hangs.is_set():
                await trio.sleep_forever()
            await trio.sleep(self.gap)
            emit(Delta(offset, [offset] if self.knows_tokens else [], f"{offset} "))
        emit(DONE)

    async def beat(self) -> None:
        while True:
            await trio.sleep(0.5)
            self.step += self.counts and not self.hangs.is_set()
            load = ModelLoad("ready", running=1, slots=4, step=self.step if self.counts else 0, uptime=9)
            self.node.peer.announce(self.node.models, {"m": load})


@pytest.fixture
def engine(mesh, nursery):
    async def build(*, continues: bool = False) -> Engine:
        made = Engine(await mesh.node(continues=continues))
        nursery.start_soon(made.beat)
        return made

    return build


@pytest.fixture
async def dispatch(mesh, nursery):
    made = Dispatch(Router(mesh.gateway.registry, strategy="round_robin"), limits=DispatchLimits())
    nursery.start_soon(made.stalls.run)
    return made


async def ask(dispatch: Dispatch) -> tuple[list, list[float]]:
    """The events, and the seconds between them."""
    events: list = []
    times = [trio.current_time()]

    def take(event) -> None:
        events.append(event)
        times.append(trio.current_time())

    await dispatch.infer(InferenceRequest(request_id="r", model="m", prompt="p", task="completion"), take)
    return events, [after - before for before, after in itertools.pairwise(times)]


def whole(events: list) -> bool:
    return [event.offset for event in events if isinstance(event, Delta)] == list(range(6)) and isinstance(events[-1], Done)


def ordered(*engines):
    return sorted(engines, key=lambda engine: engine.node.peer_id)


async def test_a_node_that_hangs_in_the_middle_is_left_within_seconds(autojump_clock, engine, dispatch):
    one, two = ordered(await engine(), await engine())

    async def hang() -> None:
        await trio.sleep(0.35)
        one.hangs.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang)
        events, gaps = await ask(dispatch)
    assert whole(events)
    assert events[0].node == one.node.peer_id
    assert 2.0 <= max(gaps) <= 3.5
    assert two.node.requests[0].prior == [[event.offset for event in events[1 : len(two.node.requests[0].prior[0]) + 1]]]
    assert dispatch.totals.stalled == 1
    await one.node.ended.wait()
    assert one.node.cancelled == ["r"]


async def test_a_node_that_hangs_before_its_first_token_is_left_once_it_is_known(autojump_clock, engine, dispatch):
    one, two = ordered(await engine(), await engine())
    for _ in range(2):
        assert whole((await ask(dispatch))[0])
    one.hangs.set()
    two.hangs.set()
    started = trio.current_time()

    async def wake() -> None:
        await trio.sleep(1)
        two.hangs = trio.Event()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wake)
        events, _ = await ask(dispatch)
    assert whole(events)
    assert trio.current_time() - started < 5
    assert events[0].attempts == 2


async def test_the_only_node_is_not_given_up(autojump_clock, engine, dispatch):
    one = await engine()

    async def pause() -> None:
        await trio.sleep(0.35)
        one.hangs.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pause)
        with trio.move_on_after(30) as patience:
            await ask(dispatch)
    assert patience.cancelled_caught
    assert len(one.node.requests) == 1


@pytest.mark.parametrize("continues", [True, False], ids=["that can", "that cannot"])
async def test_a_text_is_given_up_only_where_another_node_can_go_on_behind_it(autojump_clock, engine, dispatch, continues):
    hanging, other = ordered(await engine(continues=True), await engine(continues=True))
    for one in (hanging, other):
        one.knows_tokens = False
    other.node.continues = continues
    other.node.announce()

    async def pause() -> None:
        await trio.sleep(0.35)
        hanging.hangs.set()

    answered: list = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pause)
        with trio.move_on_after(30) as patience:
            events, _ = await ask(dispatch)
            answered += events
    assert patience.cancelled_caught is not continues
    assert len(other.node.requests) == continues
    assert not answered or whole(answered)


async def test_an_engine_that_steps_for_others_is_at_work(autojump_clock, engine, dispatch):
    slow, other = ordered(await engine(), await engine())
    slow.gap = 8.0
    events, gaps = await ask(dispatch)
    assert whole(events)
    assert max(gaps) >= 8.0
    assert events[0].node == slow.node.peer_id
    assert other.node.requests == []


async def test_a_backend_that_counts_no_steps_keeps_the_long_limit(autojump_clock, engine, dispatch):
    one, other = ordered(await engine(), await engine())
    one.gap, one.counts = 8.0, False
    events, _ = await ask(dispatch)
    assert whole(events)
    assert other.node.requests == []


async def test_gaps_that_a_node_is_known_for_are_not_stalls(autojump_clock, engine, dispatch):
    one, _ = ordered(await engine(), await engine())
    dispatch.router.observations.of(one.node.peer_id, "m").saw_gap(4.0)

    async def pause() -> None:
        await trio.sleep(0.35)
        one.hangs.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pause)
        events, gaps = await ask(dispatch)
    assert whole(events)
    assert 12.0 <= max(gaps) <= 14.0


async def test_nobody_is_blamed_for_our_own_lateness(autojump_clock, engine, dispatch, monkeypatch):
    one, other = ordered(await engine(), await engine())
    # Every look comes later than the two seconds of patience: as a loop that was held up would see it.
    monkeypatch.setattr(stall, "EVERY", 0.1)
    monkeypatch.setattr(stall, "LATE", -1.0)

    async def pause() -> None:
        await trio.sleep(0.35)
        one.hangs.set()
        await trio.sleep(10)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(pause)
        nursery.start_soon(ask, dispatch)
    assert other.node.requests == []


async def test_a_client_that_reads_slowly_is_no_stall(autojump_clock, mesh, engine, dispatch):
    attempt_of: list = []
    watching = dispatch.stalls.watching

    def note(attempt, *rest):
        attempt_of.append(attempt)
        return watching(attempt, *rest)

    dispatch.stalls.watching = note
    await engine()
    assert whole((await ask(dispatch))[0])
    (attempt,) = attempt_of
    attempt._waits_for_client = True
    assert attempt.since_progress(trio.current_time() + 100) == 0.0
