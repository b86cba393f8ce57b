from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mesh.http import Request
from mesh.messages.inference import Delta, Grammar, InferenceRequest
from mesh.openai.parse import parse_chat, parse_completion
from mesh.openai.translate import Identity, chat_inference, completion_inference
from mesh.openai.wording import Wording, json_text

IDENTITY = Identity(request_id="0-1", created=100, seed=42)
USER = {"role": "user", "content": "hi"}


def request(body: dict[str, Any]) -> Request:
    return Request(method="POST", path="/", target="/", body=msgspec.json.encode(body))


def chat(**fields: Any) -> InferenceRequest:
    return chat_inference(parse_chat(request({"model": "m", "messages": [USER], **fields})).body, IDENTITY)


def test_chat_defaults():
    assert chat() == InferenceRequest(
        request_id="0-1", model="m", task="chat", messages=[USER], max_tokens=512, temperature=0.7, top_p=0.9, top_k=50,
        seed=42, created=100, stream=False,
    )  # fmt: skip


def test_null_means_the_default():
    assert chat(temperature=None, top_p=None, top_k=None, max_tokens=None, seed=None, stop=None) == chat()


def test_completion_defaults():
    made = completion_inference(parse_completion(request({"model": "m", "prompt": ["x"]})).body, IDENTITY)
    assert made == InferenceRequest(
        request_id="0-1", model="m", task="completion", prompt="x", max_tokens=16, temperature=1.0, top_p=1.0, top_k=0,
        seed=42, created=100, stream=False,
    )  # fmt: skip


def test_what_the_client_gives_counts():
    made = chat(temperature=0, top_p=0.5, top_k=0, max_tokens=3, seed=7, stop="x")
    assert (made.temperature, made.top_p, made.top_k, made.max_tokens, made.seed, made.stop) == (0, 0.5, 0, 3, 7, ["x"])
    assert chat(stop=["a", "b"]).stop == ["a", "b"]
    assert chat(top_k=-1).top_k == 0


def test_max_completion_tokens_beats_max_tokens():
    assert chat(max_tokens=3, max_completion_tokens=4).max_tokens == 4


def test_a_negative_seed_becomes_one_that_every_node_can_carry():
    assert chat(seed=-1).seed == 2**63 - 1
    assert msgspec.msgpack.encode(chat(seed=-(2**63)))


def test_messages_keep_their_shape_with_the_text_in_one_piece():
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    made = chat(
        messages=[
            {"role": "developer", "content": "be brief", "name": "me"},
            {"role": "user", "content": parts, "unknown": 1},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "5", "tool_call_id": "c"},
        ]
    )
    assert made.messages == [
        {"role": "system", "content": "be brief", "name": "me"},
        {"role": "user", "content": "one\ntwo"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "5", "tool_call_id": "c"},
    ]


@pytest.mark.parametrize("text", ["", "plain", 'a"b\\c\n', "\u2028 \u2029 \x85", "é😀", "\ud800", "\ud83d\ude00 and \udc00"])
def test_text_is_one_line_of_valid_json(text):
    encoded = json_text(text)
    decoded = msgspec.json.decode(encoded)
    assert decoded == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert len(encoded.decode().splitlines()) == 1


@pytest.mark.parametrize("model", ["infermesh-text", 'x"infermesh-text"', "m"])
def test_chunks_whatever_the_model_is_called(model):
    made = msgspec.structs.replace(chat(), model=model)
    for include_usage in (False, True):
        chunk = Wording("chat", made, include_usage=include_usage).chunk(Delta(0, [], "hi"))
        decoded = msgspec.json.decode(chunk.removeprefix(b"data: "))
        assert (decoded["model"], decoded["choices"][0]["delta"]) == (model, {"content": "hi"})


FUNCTION = {"name": "weather", "description": "how it is", "parameters": {"type": "object", "properties": {"city": {}}}}


def test_sampling_parameters_travel():
    made = chat(
        min_p=0.1, repetition_penalty=1.2, presence_penalty=-1, frequency_penalty=0.5, logit_bias={"5": -100, "7": 1.5}, n=3,
        min_tokens=2, ignore_eos=True, logprobs=True, top_logprobs=4,
    )  # fmt: skip
    assert (made.min_p, made.repetition_penalty, made.presence_penalty, made.frequency_penalty) == (0.1, 1.2, -1, 0.5)
    assert (made.logit_bias, made.n, made.min_tokens, made.ignore_eos, made.logprobs) == ({5: -100, 7: 1.5}, 3, 2, True, 4)
    assert chat(logprobs=True).logprobs == 0
    assert chat(logprobs=False).logprobs is None
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(made), type=InferenceRequest) == made


def test_completion_parameters_travel():
    parsed = parse_completion(request({"model": "m", "prompt": "x", "logprobs": 2, "echo": None}))
    assert completion_inference(parsed.body, IDENTITY).logprobs == 2
    parsed = parse_completion(request({"model": "m", "prompt": "x", "echo": True, "logprobs": False}))
    made = completion_inference(parsed.body, IDENTITY)
    assert (made.echo, made.logprobs) == (True, None)


def test_tools_travel():
    tools = [{"type": "function", "function": FUNCTION}]
    made = chat(tools=tools, parallel_tool_calls=False)
    assert (made.tools, made.tool_choice, made.tool_name, made.parallel_tool_calls) == (tools, "auto", None, False)
    assert chat(tools=tools, tool_choice="none").tool_choice == "none"
    named = chat(tools=tools, tool_choice={"type": "function", "function": {"name": "weather"}})
    assert (named.tool_choice, named.tool_name) == ("required", "weather")


@pytest.mark.parametrize(
    ("fields", "grammar"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Grammar("json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "null"}, "strict": True},
                }
            },
            Grammar("json_schema", '{"type": "null"}'),
        ),
        ({"structured_outputs": {"regex": "a+"}}, Grammar("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "ü"]}}, Grammar("choice", '["a","ü"]')),
        ({"structured_outputs": {"grammar": "start: X"}}, Grammar("lark", "start: X")),
        ({"structured_outputs": {"json": '{"type": "null"}'}}, Grammar("json_schema", '{"type": "null"}')),
        ({"structured_outputs": {"json_object": True}}, Grammar("json_object")),
        ({"guided_json": {"type": "null"}}, Grammar("json_schema", '{"type": "null"}')),
        ({"guided_regex": "a"}, Grammar("regex", "a")),
        ({"guided_choice": ["a"]}, Grammar("choice", '["a"]')),
        ({"guided_grammar": "start: X"}, Grammar("lark", "start: X")),
    ],
)
def test_forms_have_one_shape_whatever_they_are_called(fields, grammar):
    made = chat(**fields).grammar
    assert (made and (made.kind, made.text)) == (grammar and (grammar.kind, grammar.text))
    assert made is None or made.param.partition(".")[0] == next(iter(fields))
