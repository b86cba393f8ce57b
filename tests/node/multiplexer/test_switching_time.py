"""The policies against each other, on short traces of the simulation."""

import pytest

from tests.simulation.switches import TRACES, arrivals, simulate


@pytest.mark.parametrize("trace", TRACES)
def test_no_policy_spends_more_on_switching_than_fifo_and_nobody_is_lost(trace) -> None:
    fifo, *others = (
        simulate(trace, policy, models=2, cost=10.0, seed=1, duration=60.0) for policy in ("fifo", "cost_aware", "time_slice")
    )
    assert len(fifo.waits) == len(arrivals(trace, 2, 1, 60.0))
    for other in others:
        assert len(other.waits) == len(fifo.waits)
        assert other.switching < fifo.switching


@pytest.mark.parametrize("trace", ["balanced", "bursty"])
def test_cost_aware_spends_half_of_what_fifo_does(trace) -> None:
    fifo, aware = (
        simulate(trace, policy, models=2, cost=5.0, seed=1, duration=200.0).switching for policy in ("fifo", "cost_aware")
    )
    assert aware <= 0.5 * fifo
