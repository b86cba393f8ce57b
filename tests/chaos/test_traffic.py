"""What counts as a right answer, and that nothing wrong passes."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import httpx2
import pytest

from tests.chaos.traffic import Answer, Truth, ask, differs_at, make_body

TRUTH = Truth("one two", 2, "length")


def event(text: str | None = None, finish: str | None = None, **more: Any) -> str:
    delta = {} if text is None else {"content": text}
    return f"data: {json.dumps({'choices': [{'delta': delta, 'finish_reason': finish}], **more})}\n\n"


RIGHT = (event("one"), event(" two"), event(finish="length", usage={"completion_tokens": 2}), "data: [DONE]\n\n")


async def answered(*events: str, status: int = 200, stream: bool = True) -> Answer:
    """What a client makes of a reply."""

    def reply(_request: httpx2.Request) -> httpx2.Response:
        headers = {"x-infermesh-node": "somebody", "x-infermesh-attempts": "2", "x-infermesh-seed": "5"}
        return httpx2.Response(status, headers=headers, text="".join(events))

    answer = Answer({"stream": stream})
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(reply)) as http:
        await ask(http, "http://gateway", answer)
    return answer


async def test_a_right_stream() -> None:
    answer = await answered(*RIGHT)
    assert answer.fault(TRUTH) == ""
    assert (answer.node, answer.attempts, answer.seed, len(answer.pieces)) == ("somebody", 2, 5, 2)
    assert answer.begun.is_set()


@pytest.mark.parametrize(
    ("events", "fault"),
    [
        (RIGHT[:-1], "cut"),
        ((), "cut"),
        ((*RIGHT, RIGHT[-1]), "done and done"),
        ((*RIGHT, 'data: {"error": {"code": "late"}}\n\n'), "done and late"),
        ((*RIGHT[:2], 'data: {"error": {"code": "stream_interrupted"}}\n\n'), "stream_interrupted"),
        ((*RIGHT[:3], RIGHT[2], RIGHT[3]), "2 finish reasons"),
        ((RIGHT[0], RIGHT[0], *RIGHT[1:]), "from character 3"),
        ((*RIGHT[:3], RIGHT[3].strip()), "cut"),
        ((RIGHT[0], *RIGHT[2:]), "from character 3"),
        ((*RIGHT[:2], event(finish="stop", usage={"completion_tokens": 2}), RIGHT[3]), "differs"),
        ((*RIGHT[:2], event(finish="length", usage={"completion_tokens": 3}), RIGHT[3]), "differs"),
    ],
)
async def test_a_wrong_stream(events: tuple[str, ...], fault: str) -> None:
    assert fault in (await answered(*events)).fault(TRUTH)


async def test_a_stream_that_is_picked_up_counts_every_event_once() -> None:
    asked: list[str] = []

    def reply(request: httpx2.Request) -> httpx2.Response:
        asked.append(f"{request.method} {request.url.path} {request.headers.get('last-event-id')}")
        if request.method == "POST":
            # The last event lacks its end: it was not received.
            return httpx2.Response(
                200, headers={"x-infermesh-seed": "5"}, text=f"id: token:1\n{RIGHT[0]}id: token:2\n{RIGHT[1][:-1]}"
            )
        return httpx2.Response(200, text="".join(RIGHT[1:]))

    answer = Answer({"stream": True})
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(reply)) as http:
        await ask(http, "http://one", answer, others=["http://two", "http://three"])
    assert asked == ["POST /v1/chat/completions None", "GET /v1/streams token:1"]
    assert answer.fault(TRUTH) == ""
    assert (answer.lost, answer.seed) == (1, 5)


async def test_an_answer_in_one_piece() -> None:
    whole = {"choices": [{"message": {"content": "one two"}, "finish_reason": "length"}], "usage": {"completion_tokens": 2}}
    assert (await answered(json.dumps(whole), stream=False)).fault(TRUTH) == ""
    refusal = json.dumps({"error": {"code": "model_unavailable"}})
    assert "model_unavailable" in (await answered(refusal, status=503, stream=False)).fault(TRUTH)
    assert "model_unavailable" in (await answered(refusal, status=503)).fault(TRUTH)


def test_a_gap_is_a_pause_that_was_not_over_at_the_moment() -> None:
    answer = Answer({}, pieces=[1.0, 5.0, 5.5, 7.0, 7.1])
    assert [answer.gap_after(moment) for moment in (0.0, 4.9, 5.0, 6.9, 7.1)] == [4.0, 4.0, 1.5, 1.5, 0.0]


def test_texts_differ_at_the_first_place() -> None:
    assert [differs_at("abc", other) for other in ("abd", "ab", "abcd", "")] == [2, 2, 3, 0]


def test_requests_are_of_every_sort_and_the_same_for_the_same_seed() -> None:
    bodies, again = ([make_body(random.Random(1), number, "m", 9) for number in range(8)] for _ in range(2))
    assert bodies == again
    assert Counter((body["stream"], body["temperature"], "seed" in body) for body in bodies) == {
        (streamed, temperature, seeded): count
        for streamed in (True, False)
        for temperature, seeded, count in ((0.0, False, 2), (0.8, True, 1), (0.8, False, 1))
    }
