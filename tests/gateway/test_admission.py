import random
from collections.abc import Callable

import msgspec
import pytest
import trio

from gateway.admission import LOOK_AGAIN, STUCK, Admission, AdmissionLimits
from mesh.errors import BackendFailed, Busy, Conflict, MeshError, NotFound, TimedOut
from mesh.messages.inference import Done, InferenceRequest, Performance, Usage

DONE = Done("stop", Usage(1, 1), Performance(0, 0, 0, 0, 1))


class Room:
    """A model that has as much room as the test says."""

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self.takes: float | None = None
        self.listeners: list[Callable[[], None]] = []

    def resolve(self, name: str) -> str:
        if name == "nobody's":
            raise NotFound("no such model")
        return name

    def of(self, model: str) -> int:
        return self.places

    def seconds(self, request: InferenceRequest) -> float | None:
        return self.takes

    def cost(self, request: InferenceRequest) -> float:
        return 1.0

    def changed(self, listener: Callable[[], None]) -> None:
        self.listeners.append(listener)

    def grow(self, places: int) -> None:
        self.places = places
        for listener in self.listeners:
            listener()


class Service:
    """Takes `seconds` for each request, and notes the order in which they begin."""

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.begun: list[InferenceRequest] = []
        self.most = self.now = 0

    async def infer(self, request, emit) -> None:
        self.begun.append(request)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await trio.sleep(self.seconds)
            if request.prompt == "break":
                raise BackendFailed("broken")
            emit(DONE)
        finally:
            self.now -= 1

    @property
    def order(self) -> list[str]:
        return [request.request_id for request in self.begun]


class Clients:
    """Requests of many clients at once, and how each ended."""

    def __init__(self, nursery: trio.Nursery, *, places: int = 1, seconds: float = 1.0, **limits) -> None:
        self.room = Room(places)
        self.service = Service(seconds)
        self.admission = Admission(self.service, self.room, limits=AdmissionLimits(**limits))
        self.ended: dict[str, object] = {}
        self.at: dict[str, float] = {}
        self.scopes: dict[str, trio.CancelScope] = {}
        self._nursery = nursery

    async def come(self, *names: str, **more) -> None:
        for name in names:
            self._nursery.start_soon(self._ask, name, more)
            await trio.testing.wait_all_tasks_blocked()

    async def _ask(self, name: str, more: dict) -> None:
        request = InferenceRequest(request_id=name, **{"model": "m", "prompt": "", **more})
        self.scopes[name] = trio.CancelScope()
        try:
            with self.scopes[name]:
                await self.admission.infer(request, lambda event: None)
                self.ended[name] = "done"
        except MeshError as error:
            self.ended[name] = error
        self.at[name] = trio.current_time()

    def check_idle(self) -> None:
        assert self.admission.in_flight == 0
        assert self.admission.report()["models"] == {}


async def test_no_more_are_under_way_than_there_is_room_for(autojump_clock, nursery):
    clients = Clients(nursery, places=3)
    await clients.come(*"abcdefgh")
    assert clients.admission.report()["models"]["m"] == {
        "under_way": 3, "room": 3, "waiting": 5, "tenants_waiting": 1, "mean_seconds": None,
    }  # fmt: skip
    await trio.sleep(10)
    assert set(clients.ended.values()) == {"done"}
    order = clients.service.order
    assert clients.service.most == 3
    # Who is called in the same moment begins in any order.
    assert [sorted(order[:3]), sorted(order[3:6]), sorted(order[6:])] == [list("abc"), list("def"), list("gh")]
    clients.check_idle()


async def test_models_do_not_wait_for_each_other(autojump_clock, nursery):
    clients = Clients(nursery)
    await clients.come("a", "b")
    await clients.come("c", model="other")
    assert clients.service.order == ["a", "c"]


async def test_tenants_take_turns_and_a_priority_counts_within_one(autojump_clock, nursery):
    clients = Clients(nursery)
    await clients.come("a0", "a1", "a2", "a3", tenant="a")
    await clients.come("a4", tenant="a", priority=5)
    await clients.come("b1", "b2", tenant="b")
    await trio.sleep(10)
    order = clients.service.order
    assert order[:2] == ["a0", "a4"]
    assert {"b1", "b2"} < set(order[:6])


async def test_a_full_line_refuses_at_once_and_tells_when_to_come_back(autojump_clock, nursery):
    clients = Clients(nursery, seconds=3.0, waiting=2, tenant_waiting=2)
    await clients.come("a")
    await trio.sleep(4)
    await clients.come("b", "c", "d")
    before = trio.current_time()
    await clients.come("e")
    refused = clients.ended["e"]
    assert isinstance(refused, Busy)
    assert (refused.status, refused.code) == (429, "queue_full")
    # Two wait and a third would: 3 s each.
    assert refused.retry_after == pytest.approx(9.0)
    assert "try again in 9 s" in refused.message
    assert clients.at["e"] == before
    assert clients.admission.refused == {"queue_full": 1}


async def test_what_would_wait_too_long_is_refused_although_there_is_room_to_wait(autojump_clock, nursery):
    clients = Clients(nursery, seconds=2.0, wait=5.0)
    await clients.come("first")
    await trio.sleep(3)
    await clients.come("a", "b", "c", "d")
    # The second in the line begins in 4 s at the latest, the third would in 6.
    assert isinstance(clients.ended["d"], Busy)
    assert set(clients.ended) == {"first", "d"}
    await trio.sleep(10)
    assert [clients.ended[name] for name in "abc"] == ["done"] * 3


async def test_nobody_waits_longer_than_the_limit_when_the_model_gets_stuck(autojump_clock, nursery):
    clients = Clients(nursery, seconds=1000.0, wait=5.0)
    await clients.come("a", "b")
    began = trio.current_time()
    await trio.sleep(STUCK * 5.0 + 1)
    error = clients.ended["b"]
    assert isinstance(error, Busy)
    assert error.code == "queue_timeout"
    assert clients.at["b"] - began == pytest.approx(STUCK * 5.0)


async def test_a_tenant_with_less_gets_the_place_of_the_one_with_most(autojump_clock, nursery):
    clients = Clients(nursery, waiting=3, tenant_waiting=3)
    await clients.come("a0", "a1", "a2", "a3", tenant="a")
    await clients.come("b1", tenant="b")
    assert isinstance(clients.ended["a3"], Busy)
    await trio.sleep(10)
    assert clients.ended["b1"] == "done"
    assert sorted(clients.service.order) == ["a0", "a1", "a2", "b1"]


async def test_who_leaves_the_line_leaves_nothing_behind(autojump_clock, nursery):
    clients = Clients(nursery)
    await clients.come(*"abc")
    clients.scopes["b"].cancel()
    await trio.testing.wait_all_tasks_blocked()
    assert clients.admission.report()["waiting"] == 1
    await trio.sleep(10)
    assert clients.service.order == ["a", "c"]
    clients.check_idle()


async def test_who_leaves_in_the_moment_of_being_called_passes_the_place_on(autojump_clock, nursery):
    clients = Clients(nursery)
    await clients.come(*"abc")
    # `b` is cancelled first and called before it runs again.
    clients.scopes["b"].cancel()
    clients.scopes["a"].cancel()
    await trio.sleep(10)
    assert clients.service.order[-1] == "c"
    clients.check_idle()


async def test_a_failure_frees_its_place(autojump_clock, nursery):
    clients = Clients(nursery)
    await clients.come("a", prompt="break")
    await clients.come("b")
    await trio.sleep(5)
    assert isinstance(clients.ended["a"], BackendFailed)
    assert clients.ended["b"] == "done"


async def test_new_room_is_used_at_once(autojump_clock, nursery):
    clients = Clients(nursery, seconds=100.0)
    await clients.come(*"abcd")
    clients.room.grow(3)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(clients.service.order) == list("abc")


async def test_without_a_node_nobody_waits_here_but_dispatch_is_not_flooded(autojump_clock, nursery):
    clients = Clients(nursery, places=0, seconds=50.0, waiting=3)
    await clients.come(*"abcd")
    assert sorted(clients.service.order) == list("abc")
    assert isinstance(clients.ended["d"], Busy)
    clients = Clients(nursery, places=1, seconds=50.0)
    await clients.come(*"abc")
    clients.room.grow(0)
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(clients.service.order) == list("abc")


async def test_one_gateway_has_a_bound_over_all_models(autojump_clock, nursery):
    clients = Clients(nursery, places=9, requests=2)
    await clients.come("a", "b", "c")
    error = clients.ended["c"]
    assert isinstance(error, Busy)
    assert error.code == "gateway_full"


async def test_a_request_id_is_under_way_once(autojump_clock, nursery):
    clients = Clients(nursery, places=9)
    await clients.come("a")
    with pytest.raises(Conflict, match="'a' is under way"):
        await clients.admission.infer(InferenceRequest(request_id="a", model="m", prompt=""), lambda event: None)
    await trio.sleep(5)
    assert clients.ended == {"a": "done"}
    await clients.come("a")
    await trio.sleep(5)
    assert len(clients.service.begun) == 2
    assert clients.admission.refused == {"request_id_in_use": 1}


async def test_an_unknown_model_leaves_no_trace(nursery):
    clients = Clients(nursery)
    await clients.come("a", model="nobody's")
    assert isinstance(clients.ended["a"], NotFound)
    clients.check_idle()


async def test_a_deadline_that_cannot_be_met_is_refused_at_once(autojump_clock, nursery):
    clients = Clients(nursery, places=9)
    clients.room.takes = 2.0
    await clients.come("late", deadline_ms=1900)
    error = clients.ended["late"]
    assert isinstance(error, TimedOut)
    assert error.code == "deadline_too_early"
    assert "2.0 s" in error.message
    await clients.come("in time", deadline_ms=2100)
    assert clients.service.order == ["in time"]


async def test_the_wait_in_the_line_counts_towards_the_deadline(autojump_clock, nursery):
    clients = Clients(nursery, seconds=2.0)
    clients.room.takes = 2.0
    await clients.come("first")
    await trio.sleep(3)
    await clients.come("a")
    await clients.come("late", deadline_ms=3900)
    assert isinstance(clients.ended["late"], TimedOut)
    await clients.come("in time", deadline_ms=4100)
    await trio.sleep(10)
    (begun,) = [request for request in clients.service.begun if request.request_id == "in time"]
    assert begun.deadline_ms == 2100


async def test_a_deadline_that_passes_in_the_line_ends_the_wait(autojump_clock, nursery):
    clients = Clients(nursery, seconds=100.0)
    await clients.come("a")
    await clients.come("b", deadline_ms=500)
    began = trio.current_time()
    await trio.sleep(1)
    error = clients.ended["b"]
    assert isinstance(error, TimedOut)
    assert error.code == "request_timeout"
    assert clients.at["b"] - began == pytest.approx(0.5)


async def test_a_prediction_that_was_true_once_is_looked_at_again(autojump_clock, nursery):
    clients = Clients(nursery, places=9)
    clients.room.takes = 60.0
    await clients.come("a", "b", deadline_ms=1900)
    await trio.sleep(LOOK_AGAIN)
    await clients.come("c", "d", deadline_ms=1900)
    assert clients.service.order == ["c"]


async def test_no_deadline_is_refused_on_a_guess(autojump_clock, nursery):
    clients = Clients(nursery)
    clients.room.takes = None
    await clients.come("a", deadline_ms=1)
    assert clients.service.order == ["a"]


async def test_models_nobody_asks_for_any_more_are_forgotten(autojump_clock, nursery, monkeypatch):
    monkeypatch.setattr("gateway.admission.MAX_LANES", 4)
    clients = Clients(nursery, seconds=0.1)
    for number in range(20):
        await clients.come(f"r{number}", model=f"m{number}")
        await trio.sleep(1)
    assert len(clients.admission._lanes) <= 4


async def test_the_request_passed_on_has_the_models_id(nursery):
    clients = Clients(nursery, seconds=0.0)
    clients.room.resolve = lambda name: name.upper()
    request = InferenceRequest(request_id="a", model="m", prompt="hello")
    await clients.admission.infer(request, lambda event: None)
    assert clients.service.begun == [msgspec.structs.replace(request, model="M")]


async def test_three_times_the_load_is_answered_as_far_as_there_is_room_and_the_rest_is_refused_at_once(autojump_clock):
    draw = random.Random(4)
    room, mean, storm = 15, 0.15, 10.0
    capacity = room / mean
    done: list[float] = []
    refused: list[float] = []
    waits_after: list[float] = []
    service = Service()

    async def answer(request, emit) -> None:
        await trio.sleep(draw.uniform(0.5, 1.5) * mean)

    service.infer = answer
    admission = Admission(service, Room(room), limits=AdmissionLimits(wait=1.0))
    start = trio.current_time()

    async def ask(name: str) -> None:
        came = trio.current_time()
        try:
            await admission.infer(InferenceRequest(request_id=name, model="m", prompt=""), lambda event: None)
        except Busy:
            refused.append(trio.current_time() - came)
            assert came - start < storm + 2.0
        else:
            done.append(trio.current_time() - start)
            if came - start >= storm + 2.0:
                waits_after.append(trio.current_time() - came)

    async with trio.open_nursery() as nursery:
        for number in range(3400):
            nursery.start_soon(ask, str(number))
            await trio.sleep(draw.expovariate(3 * capacity if trio.current_time() - start < storm else capacity / 2))
    goodput = sum(at < storm for at in done) / storm
    assert goodput >= 0.95 * capacity
    assert len(refused) > capacity * storm
    assert max(refused) == 0.0
    # Two seconds after the storm nobody waits: what takes longer than a request itself is a rare gust.
    assert len(waits_after) > 100
    assert sorted(waits_after)[len(waits_after) * 95 // 100] <= 1.5 * mean
