"""The routes over a real server, answered by a stub service."""

from __future__ import annotations

import uuid

import pytest
import trio

from mesh.errors import BackendFailed, BadRequest, Busy, NotFound, Unavailable
from mesh.messages.inference import Accepted, Delta
from mesh.openai import routes

CHAT = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PERFORMANCE = {"prefill_time_ms": 1.5, "decode_time_ms": 2.5, "queue_time_ms": 0.5, "tokens_per_second": 1200.0, "batch_size": 2}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}


async def test_a_chat_answer(client, service, schema):
    async with client() as http:
        response = await http.post("/v1/chat/completions", json=CHAT, headers={"x-request-id": "mine"})
    reply = response.json()
    assert response.status_code == 200
    schema.check("CreateChatCompletionResponse", reply)
    request = service.requests[0]
    assert reply["id"] == f"chatcmpl-{request.request_id.replace('-', '')}"
    assert (reply["object"], reply["model"], reply["created"]) == ("chat.completion", "m", request.created)
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": "Hello", "refusal": None}
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"] == USAGE
    assert reply["performance"] == PERFORMANCE
    assert response.headers["x-request-id"] == request.request_id == str(uuid.UUID(request.request_id, version=4))
    assert (response.headers["x-infermesh-node"], response.headers["x-infermesh-attempts"]) == ("node-a", "2")
    assert "x-infermesh-ignored" not in response.headers


async def test_a_chat_stream(client, service, schema, read_events):
    async with client() as http:
        response = await http.post("/v1/chat/completions", json={**CHAT, "stream": True})
    assert response.headers["content-type"] == "text/event-stream"
    assert (response.headers["x-infermesh-node"], response.headers["x-infermesh-attempts"]) == ("node-a", "2")
    assert response.headers["x-request-id"] == service.requests[0].request_id
    *chunks, last = read_events(response.content)
    assert last == "[DONE]"
    for chunk in chunks:
        schema.check("CreateChatCompletionStreamResponse", chunk)
        assert "usage" not in chunk
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas == [{"role": "assistant", "content": ""}, {"content": "Hel"}, {"content": "lo"}, {}]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, None, "stop"]
    assert ["performance" in chunk for chunk in chunks] == [False, False, False, True]
    assert chunks[-1]["performance"] == PERFORMANCE


async def test_usage_comes_last_when_it_was_asked_for(client, schema, read_events):
    async with client() as http:
        body = {**CHAT, "stream": True, "stream_options": {"include_usage": True}}
        response = await http.post("/v1/chat/completions", json=body)
    *chunks, usage, _ = read_events(response.content)
    schema.check("CreateChatCompletionStreamResponse", usage)
    assert (usage["choices"], usage["usage"]) == ([], USAGE)
    assert all(chunk["usage"] is None for chunk in chunks)


async def test_a_completion_answer(client, service, schema):
    async with client() as http:
        response = await http.post("/v1/completions", json={"model": "m", "prompt": "once"})
    reply = response.json()
    schema.check("CreateCompletionResponse", reply)
    assert reply["id"].startswith("cmpl-")
    assert reply["choices"][0]["text"] == "Hello"
    assert (reply["usage"], reply["performance"]) == (USAGE, PERFORMANCE)
    request = service.requests[0]
    assert (request.task, request.prompt, request.messages) == ("completion", "once", None)


async def test_a_completion_stream(client, schema, read_events):
    async with client() as http:
        response = await http.post("/v1/completions", json={"model": "m", "prompt": [1, 2], "stream": True})
    *chunks, last = read_events(response.content)
    assert last == "[DONE]"
    schema.check("CreateCompletionResponse", chunks[-1])  # earlier ones have no finish_reason yet, as OpenAI's own
    assert [chunk["choices"][0]["text"] for chunk in chunks] == ["Hel", "lo", ""]


@pytest.mark.parametrize("path", ["/v1/models", "/models"])
async def test_models_are_listed_once_and_sorted(client, schema, path):
    async with client() as http:
        listed = (await http.get(path)).json()
        schema.check("ListModelsResponse", listed)
        assert [(model["id"], model["created"]) for model in listed["data"]] == [("model-a", 9), ("org/model-b", 5)]
        assert {model["owned_by"] for model in listed["data"]} == {"infermesh"}


async def test_one_model_also_with_a_slash_in_its_name(client, schema):
    async with client() as http:
        for path in ("/v1/models/org/model-b", "/v1/models/org%2Fmodel-b"):
            model = (await http.get(path)).json()
            schema.check("Model", model)
            assert model["id"] == "org/model-b"
        missing = await http.get("/v1/models/model-c")
    assert missing.status_code == 404
    error = missing.json()["error"]
    assert error["code"] == "model_not_found"
    assert "model-a" in error["message"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "retry_after"),
    [
        (NotFound("no such model", code="model_not_found", param="model"), 404, None),
        (BadRequest("prompt too long", code="context_length_exceeded", param="messages"), 400, None),
        (Busy("full", retry_after=1.2), 429, "2"),
        (Unavailable("nobody"), 503, None),
        (ExceptionGroup("nursery", [BackendFailed("broke")]), 502, None),
        (RuntimeError("a secret"), 500, None),
    ],
)
async def test_an_error_before_the_first_text_has_its_own_status(client, service, schema, error, status, retry_after, stream):
    service.script = [Accepted(node="node-a"), error]
    async with client() as http:
        response = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert response.status_code == status
    schema.check("ErrorResponse", response.json())
    assert "secret" not in response.text
    assert response.headers.get("retry-after") == retry_after
    assert response.headers["content-type"] == "application/json"
    if status != 500:
        assert response.headers["x-request-id"] == service.requests[0].request_id


@pytest.mark.parametrize(
    ("error", "code"), [(Unavailable("gone", code="link_lost"), "link_lost"), (ValueError("x"), "internal_error")]
)
async def test_an_error_in_mid_stream_is_an_event_and_the_end(running, service, read_events, error, code):
    service.script = [Delta(0, [1], "Hel"), error]
    async with running() as url:
        stream = await trio.open_tcp_stream("127.0.0.1", int(url.rpartition(":")[2]))
        async with stream:
            body = b'{"model":"m","stream":true,"messages":[{"role":"user","content":"x"}]}'
            await stream.send_all(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            received = b"".join([data async for data in stream])
    assert received.startswith(b"HTTP/1.1 200 ")
    assert b"[DONE]" not in received
    assert not received.endswith(b"0\r\n\r\n")
    event = received[received.rindex(b"data: ") :].strip() + b"\n\n"
    assert read_events(event)[0]["error"]["code"] == code


async def test_a_service_that_ends_without_a_word_is_an_error(client, service):
    service.script = [Accepted(node="node-a")]
    async with client() as http:
        for stream in (False, True):
            response = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
            assert response.status_code == 502


async def test_an_answer_without_an_end_is_bounded(client, service, monkeypatch):
    monkeypatch.setattr(routes, "MAX_REPLY_CHARACTERS", 1000)
    service.script = [Delta(0, [1], "x" * 400)] * 3 + [trio.Event()]
    async with client() as http:
        response = await http.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.json()["error"]["code"]) == (502, "reply_too_large")
    assert service.cancelled.is_set()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_cancels_the_inference(running, service, stream):
    service.script = [Delta(0, [1], "x"), trio.Event()]
    async with running() as url:
        port = int(url.rpartition(":")[2])
        body = b'{"model":"m","stream":%b,"messages":[{"role":"user","content":"x"}]}' % (b"true" if stream else b"false")
        async with await trio.open_tcp_stream("127.0.0.1", port) as socket:
            await socket.send_all(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
            )
            await service.started.wait()
        await service.cancelled.wait()


async def test_text_arrives_when_it_is_made(client, service):
    release = trio.Event()
    service.script = [Accepted(), Delta(0, [1], "first"), release, *service.script[-1:]]
    async with client() as http, http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        seen = ""
        async for text in response.aiter_text():
            seen += text
            if "first" in seen:
                release.set()
    assert seen.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("stream", [False, True])
async def test_any_text_becomes_valid_json(client, service, read_events, done, stream):
    pieces = ["\ud83d", "\ude00", "\ud83d\ude00", '"\\\n\r\x00\u2028\u2029\x85', "😀é"]
    service.script = [*(Delta(index, [index], piece) for index, piece in enumerate(pieces)), done]
    async with client() as http:
        response = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    if stream:
        chunks = read_events(response.content)[1:-2]
        texts = [chunk["choices"][0]["delta"]["content"] for chunk in chunks]
        assert texts == ["\ufffd", "\ufffd", "😀", pieces[3], pieces[4]]
        assert len(response.text.splitlines()) == 2 * len(read_events(response.content))
    else:
        assert response.json()["choices"][0]["message"]["content"] == "😀😀" + pieces[3] + pieces[4]


async def test_a_node_name_cannot_break_the_headers(client, service, done):
    service.script = [Accepted(node="a\r\nset-cookie: x \ud800 é"), done]
    async with client() as http:
        response = await http.post("/v1/chat/completions", json=CHAT)
    assert response.status_code == 200
    assert "set-cookie" not in response.headers
    assert response.headers["x-infermesh-node"].startswith("a%0D%0A")


async def test_ignored_names_are_named(client):
    names = {"colour": 0.1, "a\r\nb: c": 1, "store": True, "mirostat": None}
    async with client() as http:
        response = await http.post("/v1/chat/completions", json={**CHAT, **names})
        assert response.headers["x-infermesh-ignored"] == "colour, a%0D%0Ab%3A%20c, store, mirostat"
        many = {f"name{number}": 1 for number in range(100)}
        response = await http.post("/v1/chat/completions", json={**CHAT, **many, "stream": True})
        assert response.headers["x-infermesh-ignored"].endswith("name19, and 80 more")


async def test_two_requests_without_a_seed_get_different_ones(client, service):
    async with client() as http:
        for _ in range(2):
            await http.post("/v1/chat/completions", json=CHAT)
    assert service.requests[0].seed != service.requests[1].seed
    assert service.requests[0].request_id != service.requests[1].request_id


@pytest.mark.parametrize("stream", [False, True])
async def test_a_seed_that_was_drawn_is_said_and_can_be_sent_back(client, service, stream):
    async with client() as http:
        drawn = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
        seed = int(drawn.headers["x-infermesh-seed"])
        again = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream, "seed": seed})
    assert [request.seed for request in service.requests] == [seed, seed]
    assert seed < 2**53
    assert "x-infermesh-seed" not in again.headers


@pytest.mark.parametrize("path", ["chat/completions", "completions"])
async def test_a_client_may_want_an_error_rather_than_another_node(client, service, path):
    body = {"model": "m", "prompt": "once"} if path == "completions" else CHAT
    async with client() as http:
        for wish in ("off", "on"):
            assert (await http.post(f"/v1/{path}", json=body, headers={"x-infermesh-resume": wish})).status_code == 200
        odd = await http.post(f"/v1/{path}", json=body, headers={"x-infermesh-resume": "maybe"})
    assert [request.resume for request in service.requests] == [False, True]
    assert (odd.status_code, odd.json()["error"]["param"]) == (400, "x-infermesh-resume")
