import json
from functools import partial

import msgspec
import pytest

from mesh.errors import BackendFailed, Busy
from mesh.http import Response, Router, StreamingResponse, serve
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Said, ToolCallDelta
from mesh.openai.remote.client import RemoteClient
from node.backends.anthropic.answer import MessagesAnswer
from node.backends.anthropic.server import AnthropicServer, secrets

REQUEST = InferenceRequest(request_id="r", model="m", messages=[{"role": "user", "content": "hi"}])
TEXT = [
    {"type": "message_start", "message": {"content": [], "usage": {"input_tokens": 5, "cache_read_input_tokens": 2}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "x"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "ping"},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hel"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "lo"}},
    {"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {"output_tokens": 8}},
    {"type": "message_stop"},
]
CALLS = [
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": "so"}},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "c1", "name": "f", "input": {}}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a":'}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "c2", "name": "g", "input": {}}},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}},
    {"type": "message_stop"},
]


def stream(events: list[dict]) -> bytes:
    return "".join(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events).encode()


def run(data: bytes, request: InferenceRequest = REQUEST) -> list:
    events: list = []
    answer = MessagesAnswer(request, events.append)
    answer.feed(data)
    answer.end()
    return events


async def test_text_and_thoughts_arrive_piece_by_piece_with_the_providers_counts():
    *deltas, done = run(stream(TEXT))
    assert deltas == [Delta(0, [], "", reasoning="hm"), Delta(1, [], "Hel"), Delta(2, [], "lo")]
    assert (done.finish_reason, done.usage.prompt_tokens, done.usage.completion_tokens) == ("length", 7, 8)


@pytest.mark.parametrize(
    ("before", "pieces", "told"),
    [
        ("one,\n ", ["\n", " two", " "], ["two", " "]),
        ("one, ", ["two"], ["two"]),
        ("one, ", ["\n two"], ["\n two"]),
        ("one,", [" two"], [" two"]),
    ],
)
async def test_space_that_the_client_has_is_not_said_again(before, pieces, told):
    said = [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}} for text in pieces]
    *deltas, done = run(stream([*said, *TEXT[-2:]]), msgspec.structs.replace(REQUEST, said=Said(before, 4)))
    assert [(delta.offset, delta.text) for delta in deltas] == list(enumerate(told, 4))
    assert done.usage.completion_tokens == 12


async def test_tool_calls_are_numbered_in_their_order():
    *deltas, done = run(stream(CALLS))
    assert [call for delta in deltas for call in delta.tool_calls] == [
        ToolCallDelta(0, "c1", "f"),
        ToolCallDelta(0, arguments='{"a":'),
        ToolCallDelta(0, arguments="1}"),
        ToolCallDelta(1, "c2", "g"),
    ]
    assert done.finish_reason == "tool_calls"


async def test_an_answer_in_one_piece():
    events: list = []
    answer = MessagesAnswer(REQUEST, events.append)
    content = [{"type": "text", "text": "all"}, {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]
    body = {"content": content, "stop_reason": "end_turn", "usage": {"input_tokens": 1, "output_tokens": 2}}
    answer.take_whole(json.dumps(body).encode())
    answer.end()
    assert events[0].text == "all"
    assert events[2].tool_calls == [ToolCallDelta(0, arguments='{"a":1}')]
    assert events[-1].usage.completion_tokens == 2


@pytest.mark.parametrize(
    ("data", "kind", "code"),
    [
        (stream(TEXT[:-1]), BackendFailed, "incomplete_answer"),
        (b"data: {]\n\n", BackendFailed, "bad_answer"),
        (stream([{"type": "error", "error": {"type": "overloaded_error", "message": "full"}}]), Busy, "busy"),
        (stream([{"type": "error", "error": {"type": "api_error", "message": "broken"}}]), BackendFailed, "service_failed"),
    ],
    ids=["cut off", "no JSON", "overloaded", "broken"],
)
async def test_what_is_no_whole_answer_is_the_providers_failure(data, kind, code):
    with pytest.raises(kind) as caught:
        run(data)
    assert caught.value.code == code


async def test_over_http_with_the_key_where_it_belongs(nursery):
    seen: list[dict] = []

    async def messages(request):
        seen.append(request.headers)

        async def produce(writer):
            writer.write(stream(TEXT))

        return StreamingResponse(produce)

    async def models(_request):
        return Response.json({"data": [{"type": "model", "id": "claude", "created_at": "2026-01-01T00:00:00Z"}]})

    router = Router()
    router.add("POST", "/v1/messages", messages)
    router.add("GET", "/v1/models", models)
    port = await nursery.start(partial(serve, router, "127.0.0.1", 0))
    server = AnthropicServer(f"http://127.0.0.1:{port}/v1/", RemoteClient(secrets=secrets("sesame")))
    try:
        assert [model.id for model in await server.models()] == ["claude"]
        events: list = []
        await server.infer(REQUEST, events.append)
    finally:
        await server.aclose()
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Done)
    assert (seen[0]["x-api-key"], seen[0]["anthropic-version"]) == ("sesame", "2023-06-01")
