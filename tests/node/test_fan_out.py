"""Several answers to one request, over engine events made by hand."""

from __future__ import annotations

import msgspec

from mesh.messages.inference import Accepted, Delta, Done, Fail, InferenceRequest, Performance, Usage
from node.fan_out import FanOut, choice_seed

REQUEST = InferenceRequest(request_id="r", model="m", n=3, seed=5)
FAIL = Fail(kind="BackendFailed", message="broke", code="backend_failed", status=502)


def done(tokens: int, reason: str = "stop") -> Done:
    performance = Performance(
        prefill_time_ms=tokens, decode_time_ms=2.0, queue_time_ms=0.0, tokens_per_second=10.0, batch_size=tokens
    )
    return Done(finish_reason=reason, usage=Usage(7, tokens), performance=performance)  # type: ignore[arg-type]


def never(number: int) -> None:
    raise AssertionError(number)


def test_one_answer_passes_unchanged() -> None:
    fan_out = FanOut()
    request = msgspec.structs.replace(REQUEST, n=1)
    assert fan_out.split(4, request) == [(4, request)]
    assert fan_out.numbers(4) == [4]
    events = [(4, Accepted()), (4, Delta(0, [1], "x")), (4, done(1))]
    assert fan_out.merge(events, never) == events


def test_answers_are_told_apart_and_end_together() -> None:
    fan_out = FanOut()
    parts = fan_out.split(4, REQUEST)
    first, second, third = (number for number, _ in parts)
    assert [part.n for _, part in parts] == [1, 1, 1]
    assert parts[0][1].seed == 5
    assert len({part.seed for _, part in parts}) == 3
    assert fan_out.numbers(4) == [first, second, third]
    begun = fan_out.merge([(first, Accepted()), (second, Accepted()), (third, Accepted()), (2, Accepted())], never)
    assert begun == [(4, Accepted()), (2, Accepted())]
    said = fan_out.merge([(second, Delta(0, [1], "b")), (second, done(1, "length")), (first, Delta(0, [2], "a"))], never)
    assert said == [
        (4, Delta(0, [1], "b", choice=1)),
        (4, Delta(1, [], "", choice=1, finish_reason="length")),
        (4, Delta(0, [2], "a", choice=0)),
    ]
    (_, one), (_, two), (_, end) = fan_out.merge([(third, done(3)), (first, done(2))], never)
    assert (one.choice, two.choice) == (2, 0)
    assert isinstance(end, Done)
    assert end.usage == Usage(7, 6)
    assert (end.performance.prefill_time_ms, end.performance.tokens_per_second, end.performance.batch_size) == (3, 30, 3)
    assert fan_out.numbers(4) == [4]


def test_the_first_failure_ends_all() -> None:
    fan_out = FanOut()
    first, second, third = (number for number, _ in fan_out.split(4, REQUEST))
    aborted: list[int] = []
    merged = fan_out.merge([(first, Accepted()), (second, FAIL), (third, Delta(0, [1], "x"))], aborted.append)
    assert merged == [(4, Accepted()), (4, FAIL)]
    assert sorted(aborted) == sorted([first, second, third])
    assert fan_out.merge([(third, FAIL), (8, FAIL)], never) == [(8, FAIL)]


def test_answers_to_one_request_have_seeds_of_their_own() -> None:
    assert choice_seed(17, 0) == 17
    seeds = {choice_seed(seed, choice) for seed in (0, 1, -1, 2**63 - 1) for choice in range(50)}
    assert len(seeds) == 200
    assert all(-1 <= seed < 2**63 for seed in seeds)
