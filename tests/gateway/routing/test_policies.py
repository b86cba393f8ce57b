import itertools
from collections import Counter

import pytest
from msgspec.structs import replace

from gateway.routing.plugins import policy_named
from gateway.routing.policies import DEFAULT_POLICY, POLICIES
from gateway.routing.prediction import Ranked
from gateway.routing.snapshot import Candidate, Snapshot
from mesh.errors import Misconfigured
from mesh.identity import PeerId

TRIED = {"idle": 1.0, "ttft": 0.1, "itl": 0.01, "rtt": 0.001, "latency": 1.4}


def node(name: str, **known) -> Candidate:
    return Candidate(peer_id=PeerId(name), name=name, **({"slots": 4} | known))


def snapshot(*candidates: Candidate, **more) -> Snapshot:
    return Snapshot(model="m", candidates=candidates, **more)


def first(policy: str, taken: Snapshot) -> str:
    return POLICIES[policy](taken)[0].candidate.name


def names(ranked: list[Ranked]) -> list[str]:
    return [item.candidate.name for item in ranked]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_candidate_appears_exactly_once(policy):
    candidates = [node("a", **TRIED), node("b", suspect=True), node("c", busy=9), node("d", state="asleep", wake=9.0)]
    for turn in range(8):
        for draw in (0.0, 0.3, 0.99):
            ranked = POLICIES[policy](snapshot(*candidates, turn=turn, draws=(draw, 1 - draw - 0.01, draw)))
            assert sorted(names(ranked)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_the_same_snapshot_gives_the_same_order(policy):
    taken = snapshot(node("a", **TRIED), node("b", busy=2), node("c"), turn=5, draws=(0.4, 0.7, 0.01))
    assert POLICIES[policy](taken) == POLICIES[policy](taken)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_node_that_failed_comes_last_but_is_not_banned(policy):
    taken = snapshot(node("bad", suspect=True), node("good", busy=30))
    assert names(POLICIES[policy](taken)) == ["good", "bad"]
    assert names(POLICIES[policy](snapshot(node("bad", suspect=True)))) == ["bad"]


@pytest.mark.parametrize("policy", ["round_robin", "weighted_round_robin", "least_loaded", "best_performance"])
def test_awake_nodes_come_before_sleeping_ones(policy):
    taken = snapshot(node("asleep", state="asleep", wake=5.0), node("awake", busy=3))
    assert names(POLICIES[policy](taken)) == ["awake", "asleep"]


def test_round_robin_takes_turns():
    candidates = node("a"), node("b"), node("c")
    assert [first("round_robin", snapshot(*candidates, turn=turn)) for turn in range(6)] == list("abcabc")


def test_weights_decide_how_often_a_turn_comes():
    candidates = node("heavy", weight=3.0), node("light", weight=1.0), node("none", weight=0.0)
    taken = [first("weighted_round_robin", snapshot(*candidates, turn=turn)) for turn in range(400)]
    counts = Counter(taken)
    assert abs(counts["heavy"] - 300) <= 4
    assert counts["none"] == 0
    # Smooth: the light node's turns are spread over the whole, and come without long gaps.
    turns = [turn for turn, name in enumerate(taken) if name == "light"]
    assert max(later - earlier for earlier, later in itertools.pairwise(turns)) <= 8


def test_weights_that_are_all_zero_still_serve():
    assert len(POLICIES["weighted_round_robin"](snapshot(node("a", weight=0.0), node("b", weight=0.0)))) == 2


def test_least_loaded_compares_shares_of_slots_and_breaks_ties_by_turn():
    assert first("least_loaded", snapshot(node("small", busy=2, slots=4), node("big", busy=4, slots=16))) == "big"
    equal = node("a"), node("b")
    assert {first("least_loaded", snapshot(*equal, turn=turn)) for turn in range(2)} == {"a", "b"}


def test_prediction_prefers_the_node_that_finishes_first():
    slow = node("slow", **TRIED | {"itl": 0.1})
    fast = node("fast", **TRIED)
    assert first("predicted_latency", snapshot(slow, fast)) == "fast"


def test_prediction_counts_queue_waking_distance_and_prefill():
    base = node("base", **TRIED)
    far = replace(base, rtt=2.0)
    full = replace(base, busy=12)
    asleep = replace(base, state="asleep", wake=8.0)
    slow_prefill = replace(base, prefill_rate=100.0)
    for worse in (far, full, asleep, slow_prefill):
        worse = replace(worse, name="worse", peer_id=PeerId("worse"))
        assert first("predicted_latency", snapshot(worse, base, prompt_tokens=1000)) == "base"


def test_a_long_queue_at_a_fast_node_sends_requests_to_a_slower_one():
    fast = node("fast", **TRIED | {"busy": 40})
    slow = node("slow", **TRIED | {"itl": 0.03})
    assert first("predicted_latency", snapshot(fast, slow)) == "slow"


def test_a_node_never_tried_is_tried():
    known = node("known", **TRIED)
    fresh = node("fresh", rtt=0.001)
    for draw in (0.0, 0.5, 0.99):
        assert first("predicted_latency", snapshot(known, fresh, draws=(draw, draw, 0.5))) == "fresh"


def test_a_node_never_tried_gets_no_more_than_it_has_slots_for():
    known = node("known", **TRIED)
    fresh = node("fresh", rtt=0.001, busy=8)
    assert first("predicted_latency", snapshot(known, fresh)) == "known"


def test_nothing_known_of_anybody_spreads_by_chance():
    candidates = node("a"), node("b")
    seen = {first("predicted_latency", snapshot(*candidates, draws=(draw, draw, 0.5))) for draw in (0.0, 0.9)}
    assert seen == {"a", "b"}


def test_among_the_near_best_the_emptier_of_two_picks_wins():
    candidates = (
        node("a", **TRIED | {"itl": 0.0100}),
        node("b", **TRIED | {"itl": 0.0098, "busy": 0}),
        node("c", **TRIED | {"itl": 1.0}),
    )
    busy = replace(candidates[0], busy=1, itl=0.008)
    taken = snapshot(busy, candidates[1], candidates[2], draws=(0.0, 0.99, 0.5))
    assert first("predicted_latency", taken) == "b"
    assert names(POLICIES["predicted_latency"](taken))[-1] == "c"


def test_a_slow_node_that_was_not_tried_for_long_is_looked_at_again_now_and_then():
    fast = node("fast", **TRIED)
    stale = node("stale", **TRIED | {"itl": 0.5, "idle": 120.0})
    assert first("predicted_latency", snapshot(fast, stale, draws=(0.0, 0.0, 0.01))) == "stale"
    assert first("predicted_latency", snapshot(fast, stale, draws=(0.0, 0.0, 0.5))) == "fast"
    recent = replace(stale, idle=3.0)
    assert first("predicted_latency", snapshot(fast, recent, draws=(0.0, 0.0, 0.01))) == "fast"


def test_the_parts_of_a_prediction_add_up():
    [ranked] = POLICIES["predicted_latency"](snapshot(node("a", **TRIED)))
    assert ranked.score == pytest.approx(sum(ranked.parts.values()))
    assert set(ranked.parts) == {"rtt", "wait", "prefill", "decode", "wake"}


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(Misconfigured, match=r"'fastest'.*least_loaded, predicted_latency, prefix_affinity, round_robin"):
        policy_named("fastest")
    assert DEFAULT_POLICY in POLICIES


def test_the_clients_address_counts_under_prefix_affinity_alone():
    candidates = [node(name, **TRIED) for name in "abcdef"]
    keys = [bytes([number]) * 12 for number in range(40)]
    for policy in sorted(POLICIES):
        same = [names(POLICIES[policy](snapshot(*candidates, client=key))) for key in keys]
        assert (len({order[0] for order in same}) > 1) == (policy == "prefix_affinity")


def test_what_a_request_begins_with_says_more_than_where_it_came_from():
    candidates = [node(name, **TRIED) for name in "abcdef"]
    for number in range(20):
        prefix = bytes([number]) * 12
        alone = first("prefix_affinity", snapshot(*candidates, prefix=prefix))
        assert first("prefix_affinity", snapshot(*candidates, prefix=prefix, client=b"somewhere")) == alone
