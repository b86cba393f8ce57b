"""Requests that outlive their readers."""

from __future__ import annotations

import math

import pytest
import trio
import trio.testing

from mesh.errors import BackendFailed, BadRequest, Conflict, MeshError, NotFound, Unavailable
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Kept, Performance, Usage
from mesh.messages.link import Attach
from mesh.service import paced, room
from node.keeping import Keeper, KeepingLimits

DONE = Done("stop", Usage(1, 8), Performance(1, 2, 0, 10, 1))
KEEP = b"a secret"


class Engine:
    """Gives one token whenever it is let."""

    def __init__(self, length: int = 8, error: Exception | None = None) -> None:
        self.length, self.error = length, error
        self.generated = 0
        self.stopped = 0
        self.go, self.let = trio.open_memory_channel[None](math.inf)

    async def infer(self, request, emit) -> None:
        emit(Accepted(running=1))
        try:
            for at in range(sum(map(len, request.prior)), self.length):
                await self.let.receive()
                self.generated += 1
                emit(Delta(at, [at], f"{at} "))
                await room(emit)
        except trio.Cancelled:
            self.stopped += 1
            raise
        if self.error is not None:
            raise self.error
        emit(DONE)

    async def give(self, count: int) -> None:
        for _ in range(count):
            self.go.send_nowait(None)
        await trio.testing.wait_all_tasks_blocked()


def request(**options) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", prompt="p", **{"keep": KEEP, **options})


def wanted(tokens: int = 0, **options) -> Attach:
    return Attach(**{"keep": KEEP, "tenant": "anonymous", "tokens": tokens, **options})


class Reader:
    """Somebody at the other end of a link. `lose` breaks the link, `leave` cancels in good order."""

    def __init__(self, nursery) -> None:
        self.events: list = []
        self.error: MeshError | None = None
        self.over = trio.Event()
        self._scope = trio.CancelScope()
        self._lost = False
        self._nursery = nursery

    def start(self, work) -> Reader:
        self._nursery.start_soon(self._run, work)
        return self

    async def _run(self, work) -> None:
        try:
            with self._scope:
                await work(paced(self.events.append, trio.lowlevel.checkpoint, lambda: self._lost))
        except MeshError as error:
            self.error = error
        finally:
            self.over.set()

    async def lose(self) -> None:
        self._lost = True
        await self.leave()

    async def leave(self) -> None:
        self._scope.cancel()
        await self.over.wait()

    @property
    def offsets(self) -> list[int]:
        return [event.offset for event in self.events if isinstance(event, Delta)]

    @property
    def done(self) -> bool:
        return isinstance(self.events[-1], Done)


@pytest.fixture
def keeping(nursery):
    async def build(engine: Engine, **limits) -> Keeper:
        keeper = Keeper(engine, limits=KeepingLimits(**limits))
        await nursery.start(keeper.run)
        return keeper

    return build


@pytest.fixture
def reader(nursery):
    return lambda: Reader(nursery)


async def test_a_lost_reader_is_followed_by_another_and_nothing_is_made_twice(autojump_clock, keeping, reader):
    engine = Engine()
    keeper = await keeping(engine)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(3)
    assert first.events[0] == Accepted(running=1, kept=True)
    await first.lose()
    await engine.give(2)
    second = reader().start(lambda emit: keeper.attach(wanted(2), emit))
    await engine.give(3)
    await second.over.wait()
    assert (first.offsets, second.offsets, engine.generated) == ([0, 1, 2], [2, 3, 4, 5, 6, 7], 8)
    assert second.error is None
    assert second.done


async def test_what_names_no_tokens_is_not_kept(autojump_clock, reader, nursery):
    engine = Engine()
    keeper = Keeper(engine, keeps=lambda request: request.model == "other")
    await nursery.start(keeper.run)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(3)
    assert first.events[0] == Accepted(running=1)
    assert len(keeper) == 0
    await first.leave()


async def test_who_leaves_in_good_order_ends_the_request_at_once_and_its_output_stays(autojump_clock, keeping, reader):
    engine = Engine()
    keeper = await keeping(engine)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(3)
    await first.leave()
    assert engine.stopped == 1
    second = reader().start(lambda emit: keeper.attach(wanted(1), emit))
    await second.over.wait()
    assert second.offsets == [1, 2]
    assert isinstance(second.error, Unavailable)
    assert second.error.code == "stopped"


async def test_nobody_comes_within_the_grace_time(autojump_clock, keeping, reader):
    engine = Engine()
    keeper = await keeping(engine, grace=10.0)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(1)
    await first.lose()
    await trio.sleep(9)
    assert engine.stopped == 0
    await trio.sleep(2)
    assert engine.stopped == 1


async def test_what_has_ended_is_kept_for_a_while(autojump_clock, keeping, reader):
    engine = Engine()
    keeper = await keeping(engine, kept=100.0)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(8)
    assert first.done
    await trio.sleep(90)
    again = reader().start(lambda emit: keeper.attach(wanted(6), emit))
    await again.over.wait()
    assert again.offsets == [6, 7]
    assert again.done
    await trio.sleep(30)
    assert len(keeper) == keeper.size == 0
    late = reader().start(lambda emit: keeper.attach(wanted(6), emit))
    await late.over.wait()
    assert isinstance(late.error, NotFound)


async def test_a_look_tells_the_request_and_what_came_before(autojump_clock, keeping, reader):
    engine = Engine()
    keeper = await keeping(engine)
    reader().start(lambda emit: keeper.infer(request(prior=[[0, 1]]), emit))
    await engine.give(2)
    look = reader().start(lambda emit: keeper.attach(wanted(3, follow=False), emit))
    await look.over.wait()
    assert look.events == [Kept(request(prior=[[0, 1, 2]]), [2])]


@pytest.mark.parametrize(
    "other", [{"keep": b"another"}, {"tenant": "somebody else"}, {"tokens": 4}], ids=["secret", "tenant", "position"]
)
async def test_what_is_not_theirs_is_not_there(autojump_clock, keeping, reader, other):
    engine = Engine()
    keeper = await keeping(engine)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(3)
    thief = reader().start(lambda emit: keeper.attach(wanted(**other), emit))
    await thief.over.wait()
    assert isinstance(thief.error, NotFound)
    assert thief.error.code == "stream_not_found"
    assert thief.events == []
    await engine.give(5)
    assert first.done, "the stream goes on undisturbed"


async def test_who_attaches_takes_the_stream_over(autojump_clock, keeping, reader):
    engine = Engine()
    keeper = await keeping(engine)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(2)
    second = reader().start(lambda emit: keeper.attach(wanted(2), emit))
    await engine.give(0)
    await engine.give(6)
    await first.over.wait()
    assert isinstance(first.error, Conflict)
    assert first.error.code == "stream_taken"
    assert (first.offsets, second.offsets) == ([0, 1], [2, 3, 4, 5, 6, 7])


async def test_an_error_is_told_to_who_reads_and_later_ones_may_go_on_elsewhere(autojump_clock, keeping, reader):
    engine = Engine(length=2, error=BackendFailed("the worker died", code="worker_died"))
    keeper = await keeping(engine)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(2)
    assert first.error is not None
    assert first.error.code == "worker_died"
    later = reader().start(lambda emit: keeper.attach(wanted(1), emit))
    await later.over.wait()
    assert later.offsets == [1]
    assert later.error is not None
    assert later.error.code == "stopped"


async def test_what_was_refused_takes_no_room(autojump_clock, keeping, reader):
    engine = Engine(length=0, error=BadRequest("no"))
    keeper = await keeping(engine)
    refused = reader().start(lambda emit: keeper.infer(request(), emit))
    await refused.over.wait()
    assert isinstance(refused.error, BadRequest)
    assert len(keeper) == 0


async def test_the_same_request_does_not_run_twice(autojump_clock, keeping, reader):
    engine = Engine()
    keeper = await keeping(engine)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(1)
    await first.lose()
    with pytest.raises(Conflict):
        await keeper.infer(request(), print)
    await trio.testing.wait_all_tasks_blocked()
    assert engine.stopped == 1, "who opens it anew does not want the old one"
    again = reader().start(lambda emit: keeper.infer(request(prior=[[0]]), emit))
    await engine.give(7)
    assert again.offsets == [1, 2, 3, 4, 5, 6, 7]


async def test_streams_are_bounded_by_tenant_and_in_all(autojump_clock, keeping, reader):
    engine = Engine(length=1)
    keeper = await keeping(engine, streams=3, streams_of_tenant=2)

    async def run(tenant: str, number: int) -> None:
        one = reader().start(lambda emit: keeper.infer(request(keep=b"%d" % number, tenant=tenant), emit))
        await engine.give(1)
        assert one.done

    async def kept(tenant: str, number: int) -> bool:
        try:
            await keeper.attach(wanted(keep=b"%d" % number, tenant=tenant), lambda _: None)
        except NotFound:
            return False
        return True

    for number in range(3):
        await run("a", number)
    assert [await kept("a", number) for number in range(3)] == [False, True, True]
    await run("b", 3)
    await run("b", 4)
    assert len(keeper) == 3
    assert [await kept("a", 1), await kept("a", 2), await kept("b", 3), await kept("b", 4)] == [False, True, True, True]


async def test_without_room_a_request_runs_without_being_kept(autojump_clock, keeping, reader):
    engine = Engine(length=2)
    keeper = await keeping(engine, streams_of_tenant=1)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(0)
    second = reader().start(lambda emit: keeper.infer(request(keep=b"other"), emit))
    await engine.give(4)
    assert first.done
    assert second.done
    assert second.events[0] == Accepted(running=1), "it does not say that it is kept"


async def test_an_answer_that_grows_too_long_goes_on_without_being_kept(autojump_clock, keeping, reader):
    engine = Engine(length=400)
    keeper = await keeping(engine, bytes_of_stream=1000)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(300)
    assert len(keeper) == keeper.size == 0
    await first.lose()
    assert engine.stopped == 1, "nobody could find it"
    second = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(400)
    assert second.offsets == list(range(400))
    assert second.done


async def test_a_slow_reader_of_the_log_gets_all_of_it_in_order(autojump_clock, keeping, reader, nursery):
    engine = Engine(length=300)
    keeper = await keeping(engine)
    first = reader().start(lambda emit: keeper.infer(request(), emit))
    await engine.give(200)
    await first.lose()
    got: list = []

    async def slow() -> None:
        await trio.sleep(1)

    nursery.start_soon(keeper.attach, wanted(5), paced(got.append, slow))
    await trio.sleep(1.5)
    await engine.give(100)
    await trio.sleep(300)
    assert [event.offset for event in got if isinstance(event, Delta)] == list(range(5, 300))
    assert got[-1] == DONE


async def test_a_request_that_does_not_ask_is_not_kept(autojump_clock, keeping, reader):
    engine = Engine(length=1)
    keeper = await keeping(engine)
    first = reader().start(lambda emit: keeper.infer(request(keep=b""), emit))
    await engine.give(1)
    assert first.done
    assert len(keeper) == 0
