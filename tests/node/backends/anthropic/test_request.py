import pytest

from mesh.errors import BadRequest
from mesh.messages.inference import Grammar, InferenceRequest, Said
from node.backends.anthropic.request import body_of

TOOL = {"type": "function", "function": {"name": "f", "description": "does f", "parameters": {"type": "object"}}}


def request(*messages: dict, **more) -> InferenceRequest:
    return InferenceRequest(
        **{
            "request_id": "r",
            "model": "m",
            "messages": list(messages) or [{"role": "user", "content": "hi"}],
            "temperature": 0.7,
            "top_p": 0.9,
            "top_k": 50,
            **more,
        }
    )


def test_a_plain_question():
    assert body_of(request()) == {
        "model": "m",
        "max_tokens": 512,
        "messages": [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "stream": True,
    }


def test_a_whole_conversation_with_tools():
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    body = body_of(
        request(
            {"role": "system", "content": "one"},
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "well", "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "42"},
            {"role": "user", "content": "and?"},
            {"role": "system", "content": "two"},
            tools=[TOOL],
            tool_choice="required",
            tool_name="f",
            parallel_tool_calls=False,
            max_tokens=9,
            stop=["x"],
            temperature=1.8,
            top_p=0.5,
            top_k=7,
        )
    )
    assert body["system"] == "one\n\ntwo"
    assert [turn["role"] for turn in body["messages"]] == ["user", "assistant", "user"]
    assert body["messages"][1]["content"] == [
        {"type": "text", "text": "well"},
        {"type": "tool_use", "id": "c1", "name": "f", "input": {"a": 1}},
    ]
    assert body["messages"][2]["content"] == [
        {"type": "tool_result", "tool_use_id": "c1", "content": "42"},
        {"type": "text", "text": "and?"},
    ]
    assert body["tools"] == [{"name": "f", "description": "does f", "input_schema": {"type": "object"}}]
    assert body["tool_choice"] == {"type": "tool", "name": "f", "disable_parallel_tool_use": True}
    assert (body["max_tokens"], body["stop_sequences"], body["temperature"], body["top_p"], body["top_k"]) == (
        9,
        ["x"],
        1.0,
        0.5,
        7,
    )


@pytest.mark.parametrize(("choice", "kind"), [("auto", "auto"), ("none", "none"), ("required", "any")])
def test_choices_of_tools(choice, kind):
    assert body_of(request(tools=[TOOL], tool_choice=choice))["tool_choice"] == {"type": kind}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"logprobs": 0}, "logprobs"),
        ({"grammar": Grammar("json_object")}, "response_format"),
        ({"presence_penalty": 1.0}, "presence_penalty"),
        ({"logit_bias": {1: 2.0}}, "logit_bias"),
        ({"min_tokens": 3}, "min_tokens"),
    ],
)
def test_what_cannot_be_had_is_refused_by_name(fields, param):
    with pytest.raises(BadRequest) as caught:
        body_of(request(**fields))
    assert caught.value.param == param


def test_arguments_that_are_no_json_are_the_clients_fault():
    call = {"id": "c", "function": {"name": "f", "arguments": "{"}}
    with pytest.raises(BadRequest):
        body_of(request({"role": "assistant", "tool_calls": [call]}))


def test_an_answer_that_was_begun_is_the_last_message_without_the_space_at_its_end():
    body = body_of(request(said=Said("one,\n ", 3), max_tokens=10))
    assert body["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "one,"}]}
    assert body["max_tokens"] == 7


def test_an_answer_that_was_nothing_but_space_begins_anew():
    assert body_of(request(said=Said(" \n", 1)))["messages"] == body_of(request())["messages"]
