from gateway.observations import SUSPECT_FIRST, SUSPECT_MAX, Observation, Observations
from mesh.identity import PeerId
from mesh.messages.link import ModelLoad


def load(running: int, waiting: int = 0) -> ModelLoad:
    return ModelLoad(state="ready", running=running, waiting=waiting, slots=4)


def test_load_counts_what_was_sent_since_the_report():
    seen, report = Observation(), load(3)
    assert seen.busy(report) == 3
    seen.begin(0.0)
    seen.begin(0.0)
    assert seen.busy(report) == 5
    seen.end()
    assert seen.busy(report) == 4
    # The next heartbeat has the one that still runs in its count already.
    assert seen.busy(load(4)) == 4


def test_load_is_never_less_than_our_own_requests():
    seen = Observation()
    seen.begin(0.0)
    assert seen.busy(load(0)) == 1


def test_counters_of_an_event_replace_the_older_heartbeat():
    seen, report = Observation(), load(0)
    seen.busy(report)
    seen.begin(0.0)
    seen.reported(3, 2, ended=False)
    assert seen.busy(report) == 5
    seen.reported(4, 0, ended=True)
    seen.end()
    assert seen.busy(report) == 4


def test_the_first_value_is_the_average_and_later_ones_move_it():
    seen = Observation()
    assert seen.ttft is None
    seen.saw_first_token(1.0)
    assert seen.ttft == 1.0
    seen.saw_first_token(2.0)
    assert 1.0 < seen.ttft < 2.0
    seen.saw_decode(1.0, 100)
    assert seen.itl == 0.01
    seen.saw_decode(0.0, 0)
    assert seen.itl == 0.01


def test_failures_that_come_together_count_as_one():
    seen = Observation()
    for _ in range(8):
        seen.fail(100.0)
    assert (seen.failed, seen.failures_in_row, seen.suspect_until) == (8, 1, 100.0 + SUSPECT_FIRST)


def test_suspicion_doubles_has_a_limit_and_ends_with_a_success():
    seen, spans = Observation(), []
    for _ in range(30):
        now = seen.suspect_until
        seen.fail(now)
        spans.append(seen.suspect_until - now)
    assert spans[1] == 2 * spans[0]
    assert spans[-1] == SUSPECT_MAX
    seen.succeed(1.0)
    assert seen.suspect_until == 0.0


def test_pairs_are_bounded_and_those_in_use_are_kept():
    observations = Observations(limit=16)
    used = observations.of(PeerId("used"), "m")
    used.begin(0.0)
    for number in range(200):
        observations.of(PeerId(f"node {number}"), "m").tried_at = float(number + 1)
    assert len(observations) <= 16
    assert observations.of(PeerId("used"), "m") is used
    assert observations.known(PeerId("used"), ["m", "never asked for"]) == [used]
