import json

import pytest
import trio
import trio.testing

from mesh.errors import BackendFailed, BadRequest, Busy, NotFound, TimedOut, Unavailable
from mesh.http import Response, Router, StreamingResponse
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest
from mesh.openai.remote.client import AVOIDABLE, MAX_MODELS_BODY, VIA, RemoteClient, body_of, refused_name
from mesh.service import paced
from mesh.vectors import MAX_BYTES, unpack


def request(**more) -> InferenceRequest:
    return InferenceRequest(
        **{"request_id": "r", "model": "far-model", "messages": [{"role": "user", "content": "hi"}], "created": 1} | more
    )


@pytest.fixture
async def client():
    client = RemoteClient(via="me")
    yield client
    await client.aclose()


async def collect(client, base: str, **more) -> list:
    events: list = []
    await client.infer(base, request(**more), events.append)
    return events


async def test_a_chat_arrives_piece_by_piece_in_the_moment_it_is_said(client, server, texts, done):
    gate = trio.Event()
    far = await server(gates={1: gate})
    events: list = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.infer, far.url, request(), events.append)
        with trio.fail_after(10):
            while len(events) < 2:  # noqa: ASYNC110 - the list is all there is
                await trio.sleep(0.01)
        assert [event.text for event in events[1:]] == texts[:1]
        gate.set()
    assert isinstance(events[0], Accepted)
    assert [(event.offset, event.token_ids, event.text) for event in events[1:-1]] == [
        (index, [], text) for index, text in enumerate(texts)
    ]
    assert isinstance(events[-1], Done)
    assert events[-1].usage == done.usage


async def test_the_whole_request_reaches_the_server(client, server):
    far = await server()
    await collect(client, far.url, max_tokens=9, temperature=0.3, top_p=0.8, top_k=7, seed=2**62, stop=["x"])
    (seen,) = far.requests
    assert (seen.max_tokens, seen.temperature, seen.top_p, seen.top_k, seen.seed, seen.stop) == (9, 0.3, 0.8, 7, 2**62, ["x"])
    assert seen.messages == [{"role": "user", "content": "hi"}]
    await collect(client, far.url, task="completion", messages=None, prompt="say")
    assert (far.requests[1].task, far.requests[1].prompt) == ("completion", "say")


def test_a_limit_of_prompt_and_answer_together_becomes_one_of_the_answer():
    assert body_of(request(max_length=100, max_tokens=500))["max_tokens"] == 99
    assert body_of(request(max_length=1))["max_tokens"] == 1
    assert "max_tokens" not in body_of(request())
    assert "top_k" not in body_of(request(top_k=5), avoid=["top_k"])


def embedding_server(reply: dict, seen: list) -> Router:
    async def embed(request):
        seen.append(json.loads(request.body))
        return Response.json(reply)

    router = Router()
    router.add("POST", "/v1/embeddings", embed)
    return router


async def test_embeddings_are_vectors_in_the_order_of_the_inputs(client, server):
    seen: list = []
    data = [{"index": 1, "embedding": [0.5, -1.0]}, {"index": 0, "embedding": [1, 2]}]
    far = await server(router=embedding_server({"data": data, "usage": {"prompt_tokens": 7}}, seen))
    accepted, done = await collect(client, far.url, task="embedding", messages=None, inputs=["a", [1, 2]], dimensions=2)
    assert isinstance(accepted, Accepted)
    assert [unpack(vector) for vector in done.embeddings] == [[1.0, 2.0], [0.5, -1.0]]
    assert done.usage.prompt_tokens == 7
    assert seen == [{"model": "far-model", "input": ["a", [1, 2]], "encoding_format": "float", "dimensions": 2}]


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        ({"data": []}, "bad_embeddings"),
        ({"data": [{"embedding": []}]}, "bad_embeddings"),
        ({"data": [{"embedding": [0.0] * (MAX_BYTES // 4 + 1)}]}, "bad_embeddings"),
        ({"data": [{"embedding": "AAAA"}]}, "bad_answer"),
        ({}, "bad_answer"),
    ],
    ids=["none", "empty", "too large", "base64", "shape"],
)
async def test_what_is_not_one_vector_for_each_input_is_the_services_failure(client, server, reply, code):
    far = await server(router=embedding_server(reply, []))
    with pytest.raises(BackendFailed) as caught:
        await collect(client, far.url, task="embedding", messages=None, inputs=["a"])
    assert caught.value.code == code


async def test_cancelling_closes_the_connection(client, server):
    far = await server(gates={1: trio.Event()})
    started = trio.Event()

    async def ask() -> None:
        await client.infer(far.url, request(), lambda event: started.set() if isinstance(event, Delta) else None)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        with trio.fail_after(10):
            await started.wait()
        nursery.cancel_scope.cancel()
    with trio.fail_after(10):
        await far.cancelled.wait()


@pytest.mark.parametrize(
    ("status", "kind", "code"),
    [
        (400, BadRequest, "context_length_exceeded"),
        (422, BadRequest, "context_length_exceeded"),
        (401, BackendFailed, "service_denied"),
        (403, BackendFailed, "service_denied"),
        (404, NotFound, "model_not_found"),
        (408, TimedOut, "engine_timeout"),
        (429, Busy, "busy"),
        (500, BackendFailed, "service_failed"),
        (302, BackendFailed, "service_failed"),
        (503, Unavailable, "unavailable"),
        (504, TimedOut, "engine_timeout"),
    ],
)
async def test_each_status_has_its_error(client, server, status, kind, code):
    async def answer(_request):
        body = {"error": {"message": "it is too\nlong", "code": "context_length_exceeded", "param": "messages"}}
        return Response.json(body, status, {"retry-after": "7"})

    router = Router()
    router.add("POST", "/v1/chat/completions", answer)
    far = await server(router=router)
    with pytest.raises(kind) as caught:
        await collect(client, far.url)
    assert caught.value.code == code
    if kind is BadRequest:
        assert (caught.value.message, caught.value.param, caught.value.status) == ("it is too long", "messages", status)
    if kind in (Busy, Unavailable):
        assert caught.value.retry_after == 7


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b"\xff", b'"text"', b"x" * 200_000])
async def test_an_error_in_any_shape_is_understood(client, server, body):
    async def answer(_request):
        return Response(400, body)

    router = Router()
    router.add("POST", "/v1/chat/completions", answer)
    far = await server(router=router)
    with pytest.raises(BadRequest) as caught:
        await collect(client, far.url)
    assert len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"detail": "Unexpected fields in the request: {'top_k'}"}, "Unexpected fields in the request: {'top_k'}", None),
        ({"detail": [{"loc": ["body", "seed"], "msg": "too large"}, {}]}, "seed: too large", "seed"),
        ({"detail": ["no"]}, "no reason given", None),
        ({"detail": [{"loc": "seed"}]}, "no reason given", None),
        ({"object": "error", "message": "too long", "param": "prompt"}, "too long", "prompt"),
        ({"error": "too long"}, "too long", None),
    ],
)
async def test_what_servers_say_of_a_request_is_told_in_their_words(client, server, body, message, param):
    async def answer(_request):
        return Response.json(body, 422)

    router = Router()
    router.add("POST", "/v1/chat/completions", answer)
    far = await server(router=router)
    with pytest.raises(BadRequest) as caught:
        await collect(client, far.url)
    assert (caught.value.message, caught.value.param) == (message, param)


async def test_a_server_that_does_not_stream_is_understood(client, server):
    async def answer(request):
        assert json.loads(request.body)["stream"] is True
        assert request.headers[VIA] == "me"
        return Response.json({"choices": [{"message": {"content": "all"}, "finish_reason": "stop"}]})

    router = Router()
    router.add("POST", "/v1/chat/completions", answer)
    far = await server(router=router)
    _, delta, done = await collect(client, far.url)
    assert (delta.text, done.finish_reason) == ("all", "stop")


async def test_a_connection_that_breaks_is_the_services_failure(client, server):
    async def produce(writer):
        writer.write(b'data: {"choices": [{"delta": {"content": "x"}}]}\n\n')
        raise RuntimeError("the server dies")

    async def answer(_request):
        return StreamingResponse(produce)

    router = Router()
    router.add("POST", "/v1/chat/completions", answer)
    far = await server(router=router)
    with pytest.raises(BackendFailed) as caught:
        await collect(client, far.url)
    assert caught.value.code == "service_lost"
    with pytest.raises(BackendFailed) as caught:
        await collect(client, "http://127.0.0.1:1")
    assert caught.value.code == "service_unreachable"


async def test_models_come_from_v1_models_else_from_models(client, server):
    far = await server("a", "b")
    assert [model.id for model in await client.models(far.url)] == ["a", "b"]

    async def listed(_request):
        return Response.json({"data": [{"id": "old", "max_model_len": 99}, {"id": ""}, {"id": "x" * 300}]})

    router = Router()
    router.add("GET", "/models", listed)
    older = await server(router=router)
    (model,) = await client.models(older.url)
    assert (model.id, model.context_length) == ("old", 99)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"data": []}', b'{"data": 1}', b"\xff", b" " * (MAX_MODELS_BODY + 1)])
async def test_what_is_no_list_of_models_is_a_failure(client, server, body):
    async def listed(_request):
        return Response(200, body)

    router = Router()
    router.add("GET", "/v1/models", listed)
    far = await server(router=router)
    with pytest.raises(BackendFailed):
        await client.models(far.url)


async def test_no_list_anywhere_is_a_failure(client, server):
    far = await server(router=Router())
    with pytest.raises(BackendFailed, match="404"):
        await client.models(far.url)
    assert await client.healthy(f"{far.url}/health") is False


async def test_a_key_is_shown_to_the_server_and_to_nobody_else(server):
    seen: list[str | None] = []

    async def answer(request):
        seen.append(request.headers.get("authorization"))
        return Response.json({"error": {"message": "no such key: sesame"}}, 401)

    router = Router()
    router.add("POST", "/v1/chat/completions", answer)
    far = await server(router=router)
    client = RemoteClient(secrets={"authorization": "Bearer sesame"})
    try:
        with pytest.raises(BackendFailed) as caught:
            await collect(client, far.url)
    finally:
        await client.aclose()
    assert seen == ["Bearer sesame"]
    assert caught.value.message == "the service refuses us: check the key that it was given"


async def test_a_slow_reader_slows_the_server_down(client, server):
    far = await server(texts=["word "] * 3)
    gate, events = trio.Event(), []

    async def room() -> None:
        await gate.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.infer, far.url, request(), paced(events.append, room))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not any(isinstance(event, Done) for event in events)
        gate.set()
    assert isinstance(events[-1], Done)


def test_what_a_server_does_not_understand_is_left_out_or_said_otherwise():
    avoided = body_of(request(max_tokens=7, temperature=0.7, top_p=0.8, seed=4, top_k=50), avoid=AVOIDABLE)
    assert avoided.keys() == {"model", "messages", "max_completion_tokens", "top_p", "stream"}
    said = BadRequest("Unsupported parameter: 'max_tokens'; use 'max_completion_tokens'")
    assert refused_name(said) == "max_tokens"
    assert refused_name(BadRequest("the prompt is too long", param="messages")) is None
