"""OpenAI's shapes for everything that an answer can hold."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from mesh.messages.inference import Alternative, Delta, Done, InferenceRequest, TokenLogprob, ToolCallDelta
from mesh.openai.collected import CollectedChoice
from mesh.openai.wording import Wording

SCORES = [
    TokenLogprob(b"Hi", -0.5, [Alternative(b"Hi", -0.5), Alternative(b"\xc3", -2.0)]),
    TokenLogprob(b" there\xe2\x80\xa8", -1.0, []),
]
CALLS = [
    Delta(0, [1], "", tool_calls=[ToolCallDelta(0, "call_1", "weather", '{"ci')]),
    Delta(1, [2], "", tool_calls=[ToolCallDelta(0, arguments='ty": 1}'), ToolCallDelta(1, "call_2", "time", "{}")]),
]


def request(**fields: Any) -> InferenceRequest:
    return InferenceRequest(request_id="r-1", model="m", created=5, **fields)


def events(body: bytes) -> list[Any]:
    found = [event.removeprefix("data: ") for event in body.decode().split("\n\n")[:-1]]
    return [event if event == "[DONE]" else msgspec.json.decode(event) for event in found]


def streamed(wording: Wording, deltas: list[Delta], done: Done) -> list[Any]:
    parts = [wording.opening(), *(wording.chunk(delta) for delta in deltas), wording.closing(done)]
    return events(b"".join(parts))


def collected(deltas: list[Delta], choices: int = 1) -> list[CollectedChoice]:
    made = [CollectedChoice() for _ in range(choices)]
    for delta in deltas:
        made[delta.choice].add(delta)
    return made


def test_several_choices_end_one_by_one(done, schema):
    deltas = [
        Delta(0, [1], "a", choice=1),
        Delta(0, [2], "b"),
        Delta(1, [], "", choice=1, finish_reason="length"),
        Delta(1, [3], "c"),
        Delta(2, [], "", finish_reason="stop"),
    ]
    *chunks, last = streamed(Wording("chat", request(n=2)), deltas, done)
    for chunk in chunks:
        schema.check("CreateChatCompletionStreamResponse", chunk)
    found = [(choice["index"], choice["delta"], choice["finish_reason"]) for chunk in chunks for choice in chunk["choices"]]
    role = {"role": "assistant", "content": ""}
    assert found == [
        (0, role, None),
        (1, role, None),
        (1, {"content": "a"}, None),
        (0, {"content": "b"}, None),
        (1, {}, "length"),
        (0, {"content": "c"}, None),
        (0, {}, "stop"),
    ]
    assert ["performance" in chunk for chunk in chunks] == [False] * 6 + [True]
    assert last == "[DONE]"
    reply = Wording("chat", request(n=2)).reply(collected(deltas, 2), done)
    schema.check("CreateChatCompletionResponse", msgspec.json.decode(msgspec.json.encode(reply)))
    assert [(each["message"]["content"], each["finish_reason"]) for each in reply["choices"]] == [("bc", "stop"), ("a", "length")]


def test_the_last_choice_ends_for_its_own_reason(done):
    deltas = [Delta(0, [], "", finish_reason="stop"), Delta(0, [], "", choice=1, finish_reason="length")]
    chunks = streamed(Wording("completion", request(n=2)), deltas, done)[:-1]
    assert [(chunk["choices"][0]["index"], chunk["choices"][0]["finish_reason"]) for chunk in chunks] == [
        (0, "stop"),
        (1, "length"),
    ]


def test_a_choice_that_nobody_asked_for_is_dropped(done):
    assert Wording("chat", request()).chunk(Delta(0, [1], "x", choice=7)) == b""


def test_tool_calls(done, schema):
    finished = msgspec.structs.replace(done, finish_reason="tool_calls")
    *chunks, _ = streamed(Wording("chat", request()), CALLS, finished)
    for chunk in chunks:
        schema.check("CreateChatCompletionStreamResponse", chunk)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks[1:-1]]
    assert [delta["tool_calls"] for delta in deltas] == [
        [{"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"ci'}}],
        [
            {"index": 0, "function": {"arguments": 'ty": 1}'}},
            {"index": 1, "id": "call_2", "type": "function", "function": {"name": "time", "arguments": "{}"}},
        ],
    ]
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
    reply = Wording("chat", request()).reply(collected(CALLS), finished)
    schema.check("CreateChatCompletionResponse", msgspec.json.decode(msgspec.json.encode(reply)))
    message = reply["choices"][0]["message"]
    assert message["content"] is None
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "weather", "arguments": '{"city": 1}'},
        {"name": "time", "arguments": "{}"},
    ]


def test_reasoning_stands_beside_the_content(done):
    deltas = [Delta(0, [1], "", reasoning="Hm."), Delta(1, [2], "Yes.")]
    chunks = streamed(Wording("chat", request()), deltas, done)
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:3]] == [{"reasoning_content": "Hm."}, {"content": "Yes."}]
    message = Wording("chat", request()).reply(collected(deltas), done)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")


def test_chat_logprobs(done, schema):
    deltas = [Delta(0, [1], "", logprobs=SCORES[:1]), Delta(1, [2], "Hi there", logprobs=SCORES[1:])]
    wording = Wording("chat", request(logprobs=2))
    *chunks, _ = streamed(wording, deltas, done)
    for chunk in chunks:
        schema.check("CreateChatCompletionStreamResponse", chunk)
    contents = [token for chunk in chunks[1:3] for token in chunk["choices"][0]["logprobs"]["content"]]
    assert contents[0] == {
        "token": "Hi",
        "logprob": -0.5,
        "bytes": [72, 105],
        "top_logprobs": [
            {"token": "Hi", "logprob": -0.5, "bytes": [72, 105]},
            {"token": "\N{REPLACEMENT CHARACTER}", "logprob": -2.0, "bytes": [195]},
        ],
    }
    reply = msgspec.json.decode(msgspec.json.encode(wording.reply(collected(deltas), done)))
    schema.check("CreateChatCompletionResponse", reply)
    assert reply["choices"][0]["logprobs"]["content"] == contents


def test_completion_logprobs_say_where_each_token_begins(done, schema):
    deltas = [Delta(0, [1], "Hi", logprobs=SCORES[:1]), Delta(1, [2], " there", logprobs=SCORES[1:])]
    wording = Wording("completion", request(task="completion", logprobs=2))
    chunks = streamed(wording, deltas, done)
    assert [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks[:2]] == [[0], [2]]
    reply = msgspec.json.decode(msgspec.json.encode(wording.reply(collected(deltas), done)))
    schema.check("CreateCompletionResponse", reply)
    assert reply["choices"][0]["logprobs"] == {
        "tokens": ["Hi", " there\u2028"],
        "token_logprobs": [-0.5, -1.0],
        "top_logprobs": [{"Hi": -0.5, "\N{REPLACEMENT CHARACTER}": -2.0}, {}],
        "text_offset": [0, 2],
    }


@pytest.mark.parametrize(
    "delta", [CALLS[0], Delta(0, [1], "a\u2028b", reasoning="\x85"), Delta(0, [1], "\u2029", logprobs=SCORES)]
)
def test_every_event_is_one_line(delta):
    chunk = Wording("chat", request()).chunk(delta).decode()
    assert len(chunk.splitlines()) == 2
