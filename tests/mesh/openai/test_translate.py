from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mesh.http import Request
from mesh.messages.inference import InferenceRequest
from mesh.openai.parse import parse_chat, parse_completion
from mesh.openai.translate import Identity, Wording, chat_inference, completion_inference, json_text

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
        chunk = Wording("chat", made, include_usage=include_usage).chunk("hi")
        decoded = msgspec.json.decode(chunk.removeprefix(b"data: "))
        assert (decoded["model"], decoded["choices"][0]["delta"]) == (model, {"content": "hi"})
