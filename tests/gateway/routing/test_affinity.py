from collections import Counter

import pytest
from msgspec.structs import replace

from gateway.routing.affinity import keeper
from gateway.routing.policies import POLICIES
from gateway.routing.snapshot import Candidate, Snapshot
from mesh.identity import PeerId

NODES = tuple(
    Candidate(peer_id=PeerId(name), name=name, slots=8, rtt=0.001, ttft=0.1, itl=0.01, latency=1.0, idle=1.0, prefill_rate=1000)
    for name in "abcde"
)
KEYS = [f"key-{number}".encode() for number in range(500)]


def first(policy: str, snapshot: Snapshot) -> str:
    return POLICIES[policy](snapshot)[0].candidate.name


def test_keys_are_spread_and_only_those_of_a_node_that_went_move():
    before = {key: keeper(key, NODES).name for key in KEYS}
    assert min(Counter(before.values()).values()) > 60
    after = {key: keeper(key, NODES[1:]).name for key in KEYS}
    assert all(after[key] == before[key] for key in KEYS if before[key] != "a")


@pytest.mark.parametrize("policy", ["predicted_latency", "prefix_affinity", "least_loaded", "best_performance"])
def test_one_conversation_stays_on_one_node(policy):
    for key in KEYS[:20]:
        chosen = {
            first(policy, Snapshot(model="m", candidates=NODES, affinity=key, turn=turn, draws=(draw, 1 - draw, 0.5)))
            for turn in range(5)
            for draw in (0.01, 0.5, 0.99)
        }
        assert chosen == {keeper(key, NODES).name}


@pytest.mark.parametrize("policy", ["round_robin", "weighted_round_robin"])
def test_taking_turns_knows_no_affinity(policy):
    assert len({first(policy, Snapshot(model="m", candidates=NODES, affinity=b"k", turn=turn)) for turn in range(20)}) == 5


@pytest.mark.parametrize("worse", [{"busy": 24}, {"suspect": True}, {"state": "asleep", "wake": 5.0}, {"itl": 0.1}])
def test_it_yields_to_a_node_that_is_much_better(worse):
    kept = keeper(b"k", NODES)
    nodes = tuple(replace(node, **worse) if node is kept else node for node in NODES)
    assert first("predicted_latency", Snapshot(model="m", candidates=nodes, affinity=b"k")) != kept.name


def test_it_does_not_yield_to_a_node_that_is_a_little_better():
    kept = keeper(b"k", NODES)
    nodes = tuple(replace(node, busy=3) if node is kept else node for node in NODES)
    assert first("predicted_latency", Snapshot(model="m", candidates=nodes, affinity=b"k")) == kept.name


def test_a_prompt_goes_where_its_beginning_was_computed():
    nodes = tuple(replace(node, cached=900) if node.name == "d" else node for node in NODES)
    for draw in (0.0, 0.3, 0.9):
        taken = Snapshot(model="m", candidates=nodes, prompt_tokens=1000, prefix=b"p", draws=(draw, draw, 0.5))
        assert first("prefix_affinity", taken) == "d"


def test_a_cache_is_not_worth_a_long_queue():
    nodes = tuple(replace(node, cached=900, busy=60) if node.name == "d" else node for node in NODES)
    assert first("prefix_affinity", Snapshot(model="m", candidates=nodes, prompt_tokens=1000, prefix=b"p")) != "d"


def test_a_beginning_that_nobody_has_goes_to_the_same_node_from_every_gateway():
    for key in KEYS[:20]:
        chosen = {
            first("prefix_affinity", Snapshot(model="m", candidates=NODES, prefix=key, draws=(draw, draw, 0.5)))
            for draw in (0.0, 0.5, 0.99)
        }
        assert chosen == {keeper(key, NODES).name}


def test_an_affinity_of_its_own_beats_the_beginning():
    own = next(key for key in KEYS if keeper(key, NODES).name == "b")
    nodes = tuple(replace(node, cached=100) if node.name == "d" else node for node in NODES)
    assert first("prefix_affinity", Snapshot(model="m", candidates=nodes, prompt_tokens=200, prefix=b"p", affinity=own)) == "b"


def test_a_cached_beginning_shortens_the_predicted_prefill():
    cold, warm = NODES[0], replace(NODES[1], cached=900)
    ranked = POLICIES["predicted_latency"](Snapshot(model="m", candidates=(cold, warm), prompt_tokens=1000))
    prefill = {item.candidate.name: item.parts["prefill"] for item in ranked}
    assert prefill["b"] == pytest.approx(prefill["a"] / 10)
