"""The order that the simulation shows, at a scale that takes a second; `python -m tests.simulation` measures the figures."""

from dataclasses import replace

import pytest

from tests.simulation.town import ORACLE, Town, simulate

TOWN = Town(load=0.6, nodes=8, requests=1_200)


def p95(town: Town, **changes) -> float:
    outcome = simulate(replace(town, **changes))
    assert outcome.failed == 0
    return outcome.latency(0.95)


def test_predicting_beats_counting_and_taking_turns():
    predicted = p95(TOWN)
    assert predicted * 1.2 < p95(TOWN, policy="least_loaded")
    assert predicted * 4 < p95(TOWN, policy="round_robin")
    assert predicted < 1.3 * p95(TOWN, policy=ORACLE)


def test_the_same_seed_gives_the_same_run():
    small = replace(TOWN, requests=200)
    assert simulate(small).latencies == simulate(small).latencies
    assert simulate(small).latencies != simulate(replace(small, seed=2)).latencies


def test_several_gateways_do_not_herd():
    assert p95(TOWN, gateways=4) < 1.3 * p95(TOWN)


def test_prompts_with_the_same_beginning_meet_at_one_node():
    town = replace(TOWN, load=0.5, beginnings=8, spread=4.0, prompt_tokens=60.0)
    kept, spread = (simulate(replace(town, policy=policy)) for policy in ("prefix_affinity", "predicted_latency"))
    assert kept.hits > 0.8 * town.requests
    assert kept.hits > 1.5 * spread.hits
    assert kept.first_token(0.5) < 0.5 * spread.first_token(0.5)


@pytest.mark.parametrize("policy", ["best_performance", "weighted_round_robin"])
def test_every_policy_gets_the_traffic_done(policy):
    assert len(simulate(replace(TOWN, policy=policy, requests=300, load=0.3)).latencies) == 270
