import math

import pytest
import trio

from gateway import report
from gateway.app import Gateway
from gateway.dispatch import Dispatch
from gateway.nonsense import MOST_TOKENS, is_absurd, most_tokens, sound_usage
from gateway.observations import Observation
from gateway.routing.plugins import Contained
from gateway.routing.router import Router
from mesh.errors import MeshError
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry

SOUND = ModelLoad("ready", running=3, waiting=2, slots=4, prefill_rate=900.0, decode_rate=30.0)
FAST = Performance(1.0, 2.0, 0.0, 100.0, 1)


def request(**more) -> InferenceRequest:
    return InferenceRequest(**{"request_id": "r1", "model": "m", "prompt": "hello", "task": "completion", **more})


# A node that reports absurd load.


@pytest.mark.parametrize("field", ["running", "waiting", "slots"])
@pytest.mark.parametrize("value", [-1, 10**9, 2**62])
def test_counts_that_cannot_be_are_absurd(field, value):
    assert is_absurd(ModelLoad("ready", **{field: value}))


@pytest.mark.parametrize("field", ["prefill_rate", "decode_rate"])
@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf, 1e300])
def test_rates_that_cannot_be_are_absurd(field, value):
    assert is_absurd(ModelLoad("ready", **{field: value}))


def test_a_sound_report_is_not():
    assert not is_absurd(SOUND)
    assert not is_absurd(ModelLoad("ready"))


ABSURD = [
    ModelLoad("ready", running=-(10**6), waiting=-5, slots=-3),
    ModelLoad("ready", slots=2**60, prefill_rate=math.inf, decode_rate=math.inf),
    ModelLoad("ready", slots=4, prefill_rate=math.nan, decode_rate=-1.0),
    ModelLoad("ready", running=2**60, waiting=2**60, slots=1),
]


@pytest.mark.parametrize("load", ABSURD, ids=["negative", "endless", "no-numbers", "overfull"])
@pytest.mark.parametrize("strategy", ["predicted_latency", "least_loaded", "best_performance", "prefix_affinity"])
async def test_an_absurd_load_wins_nothing_and_is_counted(autojump_clock, mesh, load, strategy):
    liar, honest = await mesh.node(), await mesh.node()
    router = Router(mesh.gateway.registry, strategy=strategy)
    dispatch = Dispatch(router)
    liar.peer.announce(liar.models, {"m": load})
    link = mesh.gateway.registry.peers[liar.peer_id].link
    await mesh.until(lambda: (link.load["m"].slots, link.load["m"].decode_rate) == (load.slots, load.decode_rate))
    events: list = []
    for _ in range(10):
        await dispatch.infer(request(), events.append)
    assert sum(isinstance(event, Done) for event in events) == 10
    assert honest.requests
    for item in router.rank("m"):
        assert math.isfinite(item.score)
    faults = {one["id"]: one["faults"] for one in report.status(dispatch)["backends"]}
    # Once for each report, not for each request.
    assert faults[liar.peer_id] == {"absurd_load": 1}
    assert faults[honest.peer_id] == {}


def test_a_node_that_says_twice_that_it_does_nothing_while_it_works_is_found_out():
    seen = Observation()
    seen.begin(0.0)
    for _ in range(3):
        assert seen.busy(ModelLoad("ready", slots=4)) == 1
    assert seen.faults == {"idle_while_working": 2}


def test_a_report_older_than_the_request_is_no_nonsense():
    seen = Observation()
    for _ in range(5):
        seen.begin(0.0)
        seen.busy(ModelLoad("ready", slots=4))
        seen.end()
        seen.busy(ModelLoad("ready", slots=4))
    seen.begin(0.0)
    seen.busy(ModelLoad("ready", slots=4))
    seen.busy(ModelLoad("ready", running=1, slots=4))
    seen.busy(ModelLoad("ready", slots=4))
    assert not seen.faults


# A node that gives garbage, or never ends.


def garbage(*deltas: Delta):
    async def step(_request, emit):
        emit(Accepted())
        for delta in deltas:
            emit(delta)
        await trio.sleep(3600)

    return step


async def endless(_request, emit):
    emit(Accepted())
    for offset in range(10**9):
        emit(Delta(offset, [offset % 1000], "x"))
        await trio.sleep(0.001)


async def endless_text(_request, emit):
    emit(Accepted())
    for offset in range(10**9):
        emit(Delta(offset, [], "x"))
        await trio.sleep(0.001)


GARBAGE = {
    "a token twice": (garbage(Delta(0, [100], "a"), Delta(0, [100], "a")), "bad_tokens"),
    "a gap": (garbage(Delta(0, [100], "a"), Delta(7, [101], "b")), "bad_tokens"),
    "a negative offset": (garbage(Delta(-1, [100], "a")), "bad_tokens"),
    "a negative token": (garbage(Delta(0, [-1], "a")), "bad_tokens"),
    "a token beyond all": (garbage(Delta(0, [2**40], "a")), "bad_tokens"),
    "another choice": (garbage(Delta(0, [1], "a", choice=1)), "bad_tokens"),
    "a choice far away": (garbage(Delta(0, [1], "a", choice=10**12)), "bad_tokens"),
    "a negative choice": (garbage(Delta(0, [1], "a", choice=-1)), "bad_tokens"),
    "too many at once": (garbage(Delta(0, [1] * 50, "a")), "too_many_tokens"),
}


@pytest.mark.parametrize("name", sorted(GARBAGE))
async def test_after_garbage_another_node_answers_and_the_liar_is_counted(autojump_clock, mesh, name, words):
    step, code = GARBAGE[name]
    liar, honest = sorted([await mesh.node(), await mesh.node()], key=lambda node: node.peer_id)
    liar.script.append(step)
    dispatch = Dispatch(Router(mesh.gateway.registry, strategy="round_robin"))
    events: list = []
    await dispatch.infer(request(max_tokens=40), events.append)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "".join(words)
    assert isinstance(events[-1], Done)
    assert len(honest.requests) == 1
    assert liar.cancelled == ["r1"]
    faults = {one["id"]: one["faults"] for one in report.status(dispatch)["backends"]}
    assert faults == {liar.peer_id: {code: 1}, honest.peer_id: {}}


@pytest.mark.parametrize("step", [endless, endless_text], ids=["tokens", "text"])
async def test_a_node_that_does_not_end_is_stopped_at_the_requests_limit(autojump_clock, mesh, step):
    node = await mesh.node(step)
    dispatch = Dispatch(Router(mesh.gateway.registry))
    events: list = []
    with pytest.raises(MeshError) as caught:
        await dispatch.infer(request(max_tokens=20), events.append)
    assert "too_many_tokens" in caught.value.message + caught.value.code
    assert sum(len(event.token_ids) for event in events if isinstance(event, Delta)) in (0, 20)
    await node.ended.wait()
    assert node.cancelled == ["r1"]
    assert dispatch.router.observations.of(node.peer_id, "m").faults == {"too_many_tokens": 1}


async def test_a_node_that_just_stops_is_counted(autojump_clock, mesh):
    class Silent:
        async def infer(self, _request, _emit) -> None:
            return

    node = await mesh.node()
    link = mesh.gateway.registry.peers[node.peer_id].link
    link.infer = Silent().infer
    dispatch = Dispatch(Router(mesh.gateway.registry))
    with pytest.raises(MeshError):
        await dispatch.infer(request(), lambda event: None)
    assert dispatch.router.observations.of(node.peer_id, "m").faults == {"incomplete_answer": 1}


@pytest.mark.parametrize(
    ("usage", "told"),
    [
        (Usage(3, 4), Usage(3, 4)),
        (Usage(3, 10**15), Usage(3, 4)),
        (Usage(-7, -(10**15)), Usage(0, 4)),
        (Usage(2**62, 4), Usage(0, 4)),
    ],
    ids=["sound", "endless", "negative", "endless-prompt"],
)
async def test_counts_of_tokens_that_cannot_be_are_replaced_by_ours(autojump_clock, mesh, words, usage, told):
    async def step(_request, emit):
        for offset, word in enumerate(words):
            emit(Delta(offset, [offset], word))
        emit(Done("stop", usage, FAST))

    node = await mesh.node(step)
    dispatch = Dispatch(Router(mesh.gateway.registry))
    events: list = []
    await dispatch.infer(request(max_tokens=16), events.append)
    assert events[-1].usage == told
    assert dispatch.router.observations.of(node.peer_id, "m").faults == ({} if usage == told else {"absurd_usage": 1})
    assert dispatch.router.lengths.expected("m", 128) == 4


def test_the_strictest_limit_counts():
    entry = ModelEntry(id="m", context_length=100)
    assert most_tokens(request(), None) == MOST_TOKENS
    assert most_tokens(request(), entry) == 100
    assert most_tokens(request(max_tokens=7, max_length=9), entry) == 7
    assert most_tokens(request(max_length=9), ModelEntry(id="m")) == 9
    assert sound_usage(Usage(1, 200), given=5, most=200) == Usage(1, 200)


# One liar disturbs nobody else.


async def test_others_go_on_beside_a_node_that_floods(autojump_clock, mesh, nursery, words):
    liar, _honest = sorted([await mesh.node(), await mesh.node()], key=lambda node: node.peer_id)
    liar.script += [endless] * 5
    gateway = Gateway(mesh.gateway.registry, strategy="round_robin")
    texts: list[str] = []

    async def ask(number: int) -> None:
        events: list = []
        await gateway.service.infer(request(max_tokens=4, request_id=f"r{number}"), events.append)
        texts.append("".join(event.text for event in events if isinstance(event, Delta) and event.token_ids))

    async with trio.open_nursery() as asking:
        for number in range(10):
            asking.start_soon(ask, number)
    assert len(texts) == 10
    assert all(len(text) == len(words) for text in texts)
    assert gateway.service.in_flight == 0


# A strategy of others.


async def test_a_strategy_that_raises_costs_no_request_and_is_counted(autojump_clock, mesh):
    def broken(_snapshot):
        raise KeyError("secret")

    await mesh.node()
    dispatch = Dispatch(Router(mesh.gateway.registry))
    dispatch.router.policy = Contained("theirs", broken)
    events: list = []
    for _ in range(3):
        await dispatch.infer(request(max_tokens=16), events.append)
    assert sum(isinstance(event, Done) for event in events) == 3
    assert report.status(dispatch)["strategy"]["failures"] == {"it raised KeyError": 3}
