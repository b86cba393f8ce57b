"""The reference that is asked about an answer that differs, played by a script."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.chaos.reference import DEMO, Reference
from tests.chaos.traffic import Answer

BODY = {"model": DEMO, "messages": [], "max_tokens": 8, "temperature": 0.0, "stream": True}
WORDS = [" mesh", " of", " peers"]
RIGHT = "".join(WORDS)


def told(word: str, other: str, apart: float) -> dict[str, Any]:
    scores = ((word, -0.5), (other, -0.5 - apart))
    scored = [{"token": one, "bytes": list(one.encode()), "logprob": score} for one, score in scores]
    return {**scored[0], "top_logprobs": scored}


def reference(apart: float, *, finish: str = "length") -> tuple[Reference, list[dict[str, Any]]]:
    """One whose run is `RIGHT`, with another token `apart` at each place. What it was asked."""
    asked: list[dict[str, Any]] = []
    others = [" net", " and", " nodes"]

    def reply(request: httpx2.Request) -> httpx2.Response:
        asked.append(json.loads(request.content))
        content = [told(word, other, apart) for word, other in zip(WORDS, others, strict=True)]
        if finish == "stop":
            content.append(told("<|im_end|>", " and", apart))
        choice = {"message": {"content": RIGHT}, "finish_reason": finish, "logprobs": {"content": content}}
        headers = {"x-infermesh-node": "reference", "x-infermesh-seed": "5"}
        return httpx2.Response(200, headers=headers, json={"choices": [choice], "usage": {"completion_tokens": 3}})

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(reply))
    return Reference(http, "http://reference"), asked


def answer(text: str, *, finish: str = "length", **body: Any) -> Answer:
    return Answer({**BODY, **body}, texts=[text], tokens=3, finish=[finish], ends=["done"], seed=5)


async def test_a_right_answer_is_asked_about_once() -> None:
    judge, asked = reference(0.0)
    (verdict,) = await judge.verdicts([answer(RIGHT)])
    assert (verdict.fault, verdict.flipped, verdict.wrong) == ("", False, False)
    assert len(asked) == 1


@pytest.mark.parametrize(("apart", "flipped"), [(1e-5, True), (1e-2, False)], ids=["within", "beyond"])
async def test_an_answer_that_differs_is_a_flip_or_wrong(apart: float, flipped: bool) -> None:
    judge, asked = reference(apart)
    right, other, strange = await judge.verdicts([answer(RIGHT), answer(" mesh and more"), answer(" something else")])
    assert not right.fault
    assert "from character 6" in other.fault
    assert (other.flipped, other.wrong) == (flipped, not flipped)
    assert (strange.flipped, strange.wrong) == (False, True)
    assert [one.get("top_logprobs") for one in asked].count(20) == 2


@pytest.mark.parametrize(("apart", "flipped"), [(1e-5, True), (1e-2, False)], ids=["within", "beyond"])
async def test_an_answer_may_go_on_behind_the_end(apart: float, flipped: bool) -> None:
    judge, _ = reference(apart, finish="stop")
    (verdict,) = await judge.verdicts([answer(f"{RIGHT} and")])
    assert verdict.flipped == flipped


async def test_what_failed_and_what_is_not_of_the_engine_is_never_a_flip() -> None:
    judge, asked = reference(0.0)
    lost = answer(" mesh and")
    lost.ends = ["cut"]
    mock = answer(" mesh and", model="mock-model")
    unknown = Answer(dict(BODY), ends=["model_unavailable"])
    verdicts = await judge.verdicts([lost, mock, unknown])
    assert [verdict.wrong for verdict in verdicts] == [True, True, True]
    assert not any("top_logprobs" in one for one in asked)
