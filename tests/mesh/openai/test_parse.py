from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from mesh.errors import BadRequest
from mesh.http import Request
from mesh.openai.free_form import MAX_DEPTH
from mesh.openai.parse import parse_chat, parse_completion

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def request(body: Any, content_type: str = "application/json") -> Request:
    data = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Request(method="POST", path="/", target="/", headers={"content-type": content_type}, body=data)


def tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def refused(body: Any, parse: Any = parse_chat) -> BadRequest:
    with pytest.raises(BadRequest) as caught:
        parse(request(body))
    return caught.value


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "empty"),
        (b" \r\n", "empty"),
        (b"{", "byte 1"),
        (b'{"model" "m"}', "byte 9"),
        (b'{"model": "m", "messages": []}x', "byte 31"),
        (b'{"model": NaN}', "byte 10"),
        (b'{"model": "\\ud800"}', "byte"),
        (b'{"model": "\xff", "messages": []}', "UTF-8"),
        (b'{"x":' + b"[" * 100_000, "deep"),
        (b"\x1f\x8b\x08", "byte 0"),
        (b"[]", "JSON object"),
        (b"null", "JSON object"),
    ],
)
def test_what_is_no_json_object_is_refused_with_the_place(body, words):
    error = refused(body)
    assert error.status == 400
    assert words in error.message


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"model": None}, "model"),
        ({"model": 1}, "model"),
        ({"model": ""}, "model"),
        ({"messages": None}, "messages"),
        ({"messages": {}}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [1]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ({"messages": [CHAT["messages"][0], {"role": "boss", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "messages[0].content[0].type"),
        ({"max_tokens": "5"}, "max_tokens"),
        ({"max_tokens": 1.5}, "max_tokens"),
        ({"stream": "yes"}, "stream"),
        ({"stop": [1]}, "stop[0]"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": 1}, "stream_options"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"9" * 30: 1}}, "logit_bias"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        ({"tools": [tool("a"), tool("a")]}, "tools[1].function.name"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool("a")], "tool_choice": {"type": "function", "function": {"name": "b"}}}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"guided_choice": ["a", ""]}, "guided_choice"),
        ({"guided_regex": "a", "response_format": {"type": "json_object"}}, "guided_regex"),
        ({"structured_outputs": {"regex": "a", "json_object": True}}, "structured_outputs.json_object"),
    ],
)
def test_the_faulty_field_is_named(change, param):
    error = refused({**CHAT, **change})
    assert (error.status, error.param) == (400, param)
    assert param in error.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"temperature": 2.1}, "between 0 and 2"),
        ({"temperature": -0.1}, "between 0 and 2"),
        ({"top_p": 1.01}, "between 0 and 1"),
        ({"top_p": -1}, "between 0 and 1"),
        ({"top_k": -2}, "between 0 and"),
        ({"max_tokens": 0}, "between 1 and"),
        ({"max_tokens": 10**30}, "between 1 and"),
        ({"max_completion_tokens": -5}, "between 1 and"),
        ({"seed": 2**63}, "64 bits"),
        ({"n": 0}, "between 1 and 128"),
        ({"n": 129}, "between 1 and 128"),
        ({"min_p": 1.1}, "between 0 and 1"),
        ({"repetition_penalty": 0}, "1: off"),
        ({"presence_penalty": -2.1}, "between -2 and 2"),
        ({"frequency_penalty": 3}, "between -2 and 2"),
        ({"min_tokens": -1}, "between 0 and"),
        ({"top_logprobs": 21, "logprobs": True}, "between 0 and 20"),
        ({"logit_bias": {"5": 101}}, "between -100 and 100"),
        ({"logit_bias": {str(token): 0 for token in range(1025)}}, "1024"),
        ({"tools": [{"type": "function", "function": {"name": f"f{index}"}} for index in range(129)]}, "128"),
        ({"stop": ""}, "up to 16"),
        ({"stop": ["a", ""]}, "up to 16"),
        ({"stop": ["x"] * 17}, "up to 16"),
    ],
)
def test_out_of_range_says_what_the_range_is(change, words):
    error = refused({**CHAT, **change})
    assert (error.param, error.code) == (next(iter(change)), "out_of_range")
    assert words in error.message


@pytest.mark.parametrize(
    "change",
    [
        {"tool_choice": "sometimes"},
        {"tool_choice": {"type": "allowed_tools"}},
        {"functions": [{"name": "f"}]},
        {"modalities": ["audio"]},
        {"audio": {}},
        {"prediction": {}},
    ],
)
def test_what_we_cannot_honour_is_refused_by_name(change):
    error = refused({**CHAT, **change})
    (name,) = change
    assert (error.status, error.param, error.code) == (400, name, "unsupported_parameter")
    assert name in error.message


def test_what_asks_for_nothing_is_accepted():
    neutral = {
        "n": 1,
        "logprobs": False,
        "tools": [],
        "tool_choice": "auto",
        "response_format": {"type": "text"},
        "logit_bias": {},
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "functions": None,
        "temperature": None,
        "stop": None,
        "stream_options": None,
        "user": "me",
    }
    assert parse_chat(request({**CHAT, **neutral})).ignored == []


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**30])
def test_an_integer_that_cannot_travel_is_refused(number):
    error = refused(tool_call({"a": [{"b": number}]}))
    assert (error.status, error.param, error.code) == (400, "messages[0].tool_calls[0]", "out_of_range")
    assert parse_chat(request(tool_call({"a": [2**64 - 1, -(2**63), 1.5, None, True]}))).body.messages


def test_a_deep_tool_call_is_refused():
    deep: object = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    error = refused(tool_call({"a": deep}))
    assert (error.status, error.param) == (400, "messages[0].tool_calls[0]")
    assert "deeper than 32 levels" in error.message


def tool_call(call):
    return json.dumps({**CHAT, "messages": [{"role": "assistant", "tool_calls": [call]}]}).encode()


def test_unknown_names_are_ignored_and_told():
    assert parse_chat(request({**CHAT, "mirostat": 2, "reasoning_effort": "low"})).ignored == ["mirostat", "reasoning_effort"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_wrong_content_type_is_tolerated(content_type):
    assert parse_chat(request(CHAT, content_type)).body.model == "m"


def test_a_form_is_not():
    with pytest.raises(BadRequest) as caught:
        parse_chat(request(CHAT, "multipart/form-data; boundary=x"))
    assert caught.value.status == 415


@pytest.mark.parametrize("prompt", ["text", ["text"], [1, 2], [[1, 2]], "", [0]])
def test_one_prompt_in_any_shape(prompt):
    assert parse_completion(request({"model": "m", "prompt": prompt})).ignored == []


@pytest.mark.parametrize("prompt", [["a", "b"], [[1], [2]], [], [[]], [1, "a"], [-1], [2**31], ["a", 1]])
def test_several_prompts_or_odd_ids_are_refused(prompt):
    assert refused({"model": "m", "prompt": prompt}, parse_completion).param == "prompt"


def test_completion_fields():
    assert refused({"model": "m"}, parse_completion).param == "prompt"
    for name, value in (("best_of", 2), ("suffix", "x"), ("logprobs", 21), ("logprobs", -1), ("logprobs", "2")):
        assert refused({"model": "m", "prompt": "x", name: value}, parse_completion).param == name
    assert refused({"model": "m", "prompt": "x", "echo": True, "logprobs": 1}, parse_completion).param == "echo"
