from __future__ import annotations

from typing import Any

import pytest

from mesh.errors import BadRequest
from mesh.messages.inference import Grammar, InferenceRequest
from mesh.openai.remote.client import body_of
from mesh.openai.remote.wishes import check_wishes

TOOLS = [{"type": "function", "function": {"name": "f"}}]


def request(**fields: Any) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", messages=[{"role": "user", "content": "hi"}], **fields)


def test_what_was_asked_for_is_passed_on():
    body = body_of(
        request(
            top_k=4, min_p=0.1, repetition_penalty=1.1, presence_penalty=1.0, frequency_penalty=-1.0, logit_bias={5: 2.0},
            min_tokens=2, ignore_eos=True, tools=TOOLS, tool_choice="required", tool_name="f", parallel_tool_calls=False,
        )
    )  # fmt: skip
    assert body["logit_bias"] == {"5": 2.0}
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    names = ("top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "min_tokens", "ignore_eos")
    assert [body[name] for name in names] == [4, 0.1, 1.1, 1.0, -1.0, 2, True]
    assert (body["tools"], body["parallel_tool_calls"]) == (TOOLS, False)
    schema = body_of(request(grammar=Grammar("json_schema", '{"type":"null"}')))["response_format"]
    assert schema == {"type": "json_schema", "json_schema": {"name": "answer", "schema": {"type": "null"}, "strict": True}}
    assert body_of(request(grammar=Grammar("json_object")))["response_format"] == {"type": "json_object"}


def test_what_was_not_asked_for_is_not():
    assert body_of(request()).keys() == {"model", "temperature", "top_p", "seed", "stream", "stream_options", "messages"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"echo": True}, "echo"),
        ({"grammar": Grammar("regex", "a")}, "structured_outputs"),
    ],
)
def test_what_could_not_be_passed_back_is_refused(fields, param):
    with pytest.raises(BadRequest) as caught:
        check_wishes(request(**fields))
    assert caught.value.param == param
