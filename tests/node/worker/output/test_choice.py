"""What requests ask of their output, through the engine with a random model."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from mesh.messages.inference import Delta, Done, Fail, Grammar, InferenceRequest
from node.worker.output.choice import Pick, choose
from node.worker.output.outputs import Outputs

PROMPT = [5, 9, 33]
END = 2


@pytest.fixture(scope="module")
def driver(make_driver: Any) -> Any:
    return make_driver("llama")


def request(**fields: Any) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", task="completion", prompt=PROMPT, **fields)


@pytest.fixture(scope="module")
def outputs(tokenizer: Any) -> Outputs:
    return Outputs(tokenizer, template=tokenizer.chat_template, vocabulary=512, end_tokens=[END])


def test_penalties_reach_the_model(driver: Any) -> None:
    plain = driver.answer(prompt=PROMPT, max_tokens=40)
    again = driver.answer(prompt=PROMPT, max_tokens=40, frequency_penalty=2.0, presence_penalty=2.0)
    assert len(set(again.ids)) > len(set(plain.ids))
    pushed = driver.answer(prompt=PROMPT, max_tokens=4, logit_bias={77: 100.0})
    assert pushed.ids == [77] * 4


def test_min_tokens_and_ignore_eos(driver: Any) -> None:
    bias = {END: 100.0}
    assert driver.answer(prompt=PROMPT, max_tokens=9, logit_bias=bias).ids == [END]
    patient = driver.answer(prompt=PROMPT, max_tokens=9, logit_bias=bias, min_tokens=4)
    assert len(patient.ids) == 5
    assert END not in patient.ids[:4]
    deaf = driver.answer(prompt=PROMPT, max_tokens=9, logit_bias=bias, ignore_eos=True)
    assert (deaf.ids, deaf.last.finish_reason) == ([END] * 9, "length")


def test_stop_strings_wait_for_min_tokens(driver: Any) -> None:
    text = driver.answer(prompt=PROMPT, max_tokens=12).text
    stop = [letter for letter in text if letter.isascii()][:1]
    assert driver.answer(prompt=PROMPT, max_tokens=12, stop=stop).text == text[: text.index(stop[0])]
    assert len(driver.answer(prompt=PROMPT, max_tokens=12, stop=stop, min_tokens=8).ids) >= 8


def test_echo_comes_first_and_once(driver: Any) -> None:
    plain = driver.answer(prompt="A mesh", max_tokens=5).text
    assert driver.answer(prompt="A mesh", max_tokens=5, echo=True).text == "A mesh" + plain


def test_logprobs_are_the_models_own(driver: Any, reference: Any) -> None:
    ids, logits = reference("llama", PROMPT, 5)
    outcome = driver.answer(prompt=PROMPT, max_tokens=5, logprobs=3, temperature=0.0, presence_penalty=0.01)
    told = [event.logprobs[0] for event in outcome.events if isinstance(event, Delta)]
    assert outcome.ids == ids
    for token, row, said in zip(ids, logits, told, strict=True):
        expected = row.double().log_softmax(-1)
        assert said.logprob == pytest.approx(float(expected[token]), abs=1e-3)
        assert [each.logprob for each in said.top] == pytest.approx(expected.topk(3).values.tolist(), abs=1e-3)
        assert said.top[0].token == said.token
    assert "".join(each.token.decode(errors="replace") for each in told) != ""


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
KINDS = [
    {"temperature": 1.0, "seed": 3, "repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7},
    {"temperature": 1.0, "seed": 4, "grammar": Grammar("json_schema", json.dumps(SCHEMA))},
    {"temperature": 0.8, "seed": 5, "min_p": 0.01, "stop": ["e"], "min_tokens": 5},
    {"temperature": 1.0, "seed": 6, "ignore_eos": True, "echo": True},
]


@pytest.mark.parametrize("kind", KINDS)
def test_replayed_tokens_leave_the_state_that_they_left(outputs: Outputs, kind: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    rows = torch.randn(40, 512, generator=generator) * 2
    whole = outputs.choice(request(**kind), PROMPT, limit=40)
    said: list[tuple[int, Delta, str | None]] = []
    for row in rows:
        (pick,) = choose(row[None], [whole])
        assert isinstance(pick, Pick)
        delta, reason = whole.take(pick)
        said.append((pick.token, delta, reason))
        if reason:
            break
    assert len(said) > 3
    for cut in range(len(said)):
        other = outputs.choice(request(**kind), PROMPT, limit=40)
        other.replay([token for token, _, _ in said[:cut]])
        for row, (token, delta, reason) in zip(rows[cut:], said[cut:], strict=False):
            (pick,) = choose(row[None], [other])
            assert pick == Pick(token)
            assert other.take(Pick(token)) == (delta, reason)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_goes_on_where_another_engine_stopped(driver: Any, kind: dict[str, Any]) -> None:
    fields = {"prompt": PROMPT, "max_tokens": 16, **kind}
    whole = driver.answer(**fields)
    for cut in (1, len(whole.ids) // 2, len(whole.ids) - 1):
        number = driver.submit(**fields, prior=[whole.ids[:cut]])
        rest = driver.outcomes[number]
        while not driver.engine.idle:
            driver.step()
        del driver.outcomes[number]
        before = "".join(event.text for event in whole.events if isinstance(event, Delta) and event.offset < cut)
        assert rest.ids == whole.ids[cut:]
        assert before + rest.text == whole.text
        assert rest.last.finish_reason == whole.last.finish_reason


def test_a_broken_constraint_is_one_answers_alone(outputs: Outputs) -> None:
    good, bad = (outputs.choice(request(temperature=0), PROMPT, limit=4) for _ in range(2))

    def adjust(row: torch.Tensor) -> None:
        row[:] = math.nan
        raise ValueError("broken")

    bad.__class__ = type("Broken", (bad.__class__,), {"adjusts": True, "adjust": staticmethod(adjust)})
    picks = choose(torch.eye(2, 512) * 3, [good, bad])
    assert picks[0] == Pick(0)
    assert getattr(picks[1], "code", None) == "grammar_failed"


BAD: list[tuple[dict[str, Any], str]] = [
    ({"min_p": 1.5}, "min_p"),
    ({"presence_penalty": -3.0}, "presence_penalty"),
    ({"frequency_penalty": math.nan}, "frequency_penalty"),
    ({"repetition_penalty": 0.0}, "repetition_penalty"),
    ({"n": 0}, "n"),
    ({"n": 129}, "n"),
    ({"logprobs": 21}, "top_logprobs"),
    ({"logit_bias": {512: 1.0}}, "logit_bias"),
    ({"logit_bias": {5: 101.0}}, "logit_bias"),
    ({"logit_bias": dict.fromkeys(range(1025), 0.0)}, "logit_bias"),
    ({"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
    ({"min_tokens": -1}, "min_tokens"),
    ({"echo": True, "logprobs": 0}, "echo"),
    ({"task": "chat", "messages": [{"role": "user", "content": "x"}], "echo": True}, "echo"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": "auto", "tool_name": "x"}, "tool_choice"),
    ({"grammar": Grammar("json_object"), "stop": ["}"]}, "stop"),
    ({"grammar": Grammar("json_object"), "ignore_eos": True}, "ignore_eos"),
    ({"grammar": Grammar("json_object"), "min_tokens": 3}, "min_tokens"),
    ({"tools": [{}] * 129}, "tools"),
]


def test_what_cannot_be_is_refused_by_name(driver: Any) -> None:
    for fields, param in BAD:
        if fields.get("task") != "chat":
            fields = {"prompt": PROMPT, **fields}
        fail = driver.answer(**fields).last
        assert isinstance(fail, Fail), fields
        assert (fail.status, fail.param) == (400, param)
    assert isinstance(driver.answer(prompt=PROMPT).last, Done)
