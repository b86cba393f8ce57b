import math

import msgspec
import pytest
import trio

from gateway.routing.demand import BLOCK, Demand, demand_of
from gateway.routing.router import Router
from mesh.identity import PeerId
from mesh.messages.inference import InferenceRequest
from mesh.messages.link import Hello, ModelLoad
from mesh.messages.record import ModelEntry, NodeRecord, SealedRecord
from mesh.registry import PeerView, Registry


class Way:
    """The part of a link that routing looks at."""

    def __init__(self, name: str, load: ModelLoad, record: NodeRecord) -> None:
        self.peer_id = PeerId(name)
        self.rtt = 0.001
        self.load = {"m": load}
        self.leaving = False
        self.reason = ""
        self.closed = trio.Event()
        self.record = record
        self.hello = Hello(mesh="default", instance="i", record=SealedRecord(msgspec.msgpack.encode(record), bytes(64)))


@pytest.fixture
def registry():
    return Registry(PeerId("gateway"), mesh="default")


@pytest.fixture
def router(registry):
    return Router(registry, draw=lambda: 0.5)


@pytest.fixture
def add(registry):
    def add(name: str, load: ModelLoad | None = None, **entry) -> PeerView:
        record = NodeRecord(
            peer_id=name,
            sequence=1,
            issued_at=0,
            ttl=120,
            role="node",
            name=name,
            mesh="default",
            version="0",
            addresses=[],
            models=[ModelEntry(**({"id": "m", "state": "ready"} | entry))],
        )
        registry.linked(Way(name, load or ModelLoad("ready", slots=4), record))
        return registry.peers[PeerId(name)]

    return add


def names(ranked) -> list[str]:
    return [item.candidate.name for item in ranked]


def reasons(passed) -> dict[str, str]:
    return {one.view.record.name: one.reason for one in passed}


async def test_only_those_that_can_take_the_request_are_candidates(router, add):
    add("good")
    add("asleep", ModelLoad("asleep", slots=4))
    add("loading", ModelLoad("loading"))
    add("failed", ModelLoad("failed"))
    add("half", roles=["decode"])
    add("vectors", task="embedding")
    add("small", context_length=1_000)
    ranked, passed = router.explain("m", demand=Demand(prompt_tokens=2_000))
    assert sorted(names(ranked)) == ["asleep", "good"]
    assert reasons(passed) == {
        "loading": "its model is loading",
        "failed": "its model is failed",
        "half": "it only does decode",
        "vectors": "its model is for embedding, the request is for chat",
        "small": "the prompt has about 2000 tokens, and it serves 1000",
    }


async def test_an_embedding_goes_to_models_for_embeddings_alone(router, add):
    add("chat")
    add("vectors", task="text-embedding")
    assert names(router.rank("m", demand=Demand(task="embedding"))) == ["vectors"]


async def test_a_hint_about_the_length_leaves_everybody_when_it_would_leave_nobody(router, add):
    add("a", context_length=100)
    add("b", context_length=200)
    ranked, passed = router.explain("m", demand=Demand(prompt_tokens=5_000))
    assert sorted(names(ranked)) == ["a", "b"]
    assert passed == []


@pytest.mark.parametrize(
    "lie",
    [
        ModelLoad("ready", running=-50, waiting=-50, slots=-1, prefill_rate=-1.0, decode_rate=-1.0),
        ModelLoad("ready", slots=0, prefill_rate=math.nan, decode_rate=math.nan),
        ModelLoad("ready", running=2**60, waiting=2**60, slots=2**60, prefill_rate=math.inf, decode_rate=math.inf),
    ],
)
@pytest.mark.parametrize(
    "strategy", ["predicted_latency", "prefix_affinity", "least_loaded", "best_performance", "weighted_round_robin"]
)
async def test_a_node_that_reports_nonsense_breaks_nothing(registry, add, lie, strategy):
    add("liar", lie, wake_seconds=-math.inf, weight=math.nan)
    add("good")
    ranked = Router(registry, strategy=strategy, draw=lambda: 0.5).rank("m", demand=Demand(prompt_tokens=100))
    assert sorted(names(ranked)) == ["good", "liar"]
    assert all(math.isfinite(item.score) for item in ranked)


async def test_a_node_that_always_claims_to_be_idle_is_known_by_its_deeds(router, add):
    add("idle", ModelLoad("ready", slots=1000, prefill_rate=1e9, decode_rate=1e9))
    add("good", ModelLoad("ready", slots=4, prefill_rate=1000.0, decode_rate=100.0))
    for name, itl in (("idle", 0.5), ("good", 0.01)):
        seen = router.observations.of(PeerId(name), "m")
        seen.begin(trio.current_time())
        seen.end()
        seen.saw_first_token(0.1)
        seen.saw_decode(itl * 100, 100)
    assert names(router.rank("m"))[0] == "good"


async def test_a_node_that_failed_is_probed_by_one_request_at_a_time(router, add, autojump_clock):
    add("weak")
    seen = router.observations.of(PeerId("weak"), "m")
    seen.fail(trio.current_time())
    assert router.rank("m")[0].candidate.suspect
    await trio.sleep(1)
    assert not router.rank("m")[0].candidate.suspect
    seen.begin(trio.current_time())
    assert router.rank("m")[0].candidate.suspect
    seen.succeed(0.1)
    seen.end()
    assert not router.rank("m")[0].candidate.suspect


def prompt(text: str) -> Demand:
    return demand_of(InferenceRequest(request_id="r", model="m", task="completion", prompt=text * 4 * BLOCK))


async def test_a_beginning_is_remembered_where_it_was_sent_until_the_worker_dies(router, registry, add):
    view = add("a")
    demand = prompt("x")
    assert router.choose("m", demand=demand) is view
    assert router.rank("m", demand=demand)[0].candidate.cached == demand.prompt_tokens
    assert router.rank("m", demand=prompt("y"))[0].candidate.cached == 0
    view.link.load = {"m": ModelLoad("failed")}
    registry.beaten(view.link)
    view.link.load = {"m": ModelLoad("ready", slots=4)}
    registry.beaten(view.link)
    assert router.rank("m", demand=demand)[0].candidate.cached == 0


async def test_asking_takes_no_turn_and_a_retry_neither(registry, add):
    for name in "abc":
        add(name)
    router = Router(registry, strategy="round_robin")
    assert [names(router.rank("m"))[0] for _ in range(3)] == ["a", "a", "a"]
    assert router.choose("m", demand=Demand()).record.name == "a"
    assert router.choose("m", demand=Demand(), without={PeerId("b")}).record.name in ("a", "c")
    assert router.choose("m", demand=Demand()).record.name == "b"


async def test_what_answers_had_before_is_expected_of_the_next_within_its_limit(router, add):
    add("a", ModelLoad("ready", slots=4, decode_rate=100.0))
    router.lengths.saw("m", 1_000)
    long, short = (router.rank("m", demand=Demand(output_limit=limit))[0] for limit in (None, 10))
    assert long.parts["decode"] == pytest.approx(100 * short.parts["decode"])
