"""POST /v1/embeddings over a service that plays a script."""

from __future__ import annotations

import base64
from contextlib import asynccontextmanager
from functools import partial

import httpx2
import msgspec
import openai
import pytest
import trio

from mesh import embedding
from mesh.embedding import MAX_INPUTS, MOST_AT_ONCE, MOST_SIZE_AT_ONCE
from mesh.http import Router, serve
from mesh.messages.inference import Accepted, Done, Performance, Usage
from mesh.openai.routes import OpenAIRoutes
from mesh.vectors import pack

PERFORMANCE = Performance(prefill_time_ms=1, decode_time_ms=0, queue_time_ms=0, tokens_per_second=0, batch_size=1)


class Embedder:
    """Answers each input with (its length, 1); `change` may spoil an answer."""

    def __init__(self):
        self.requests = []
        self.numerics = ["n"]
        self.change = lambda done: done

    async def infer(self, request, emit):
        self.requests.append(request)
        await trio.lowlevel.checkpoint()
        numerics = self.numerics[min(len(self.requests), len(self.numerics)) - 1]
        emit(Accepted(node="node-a", attempts=1, numerics=numerics))
        vectors = [pack([float(len(one)), 1.0]) for one in request.inputs]
        done = Done(finish_reason="stop", usage=Usage(len(vectors), 0), performance=PERFORMANCE, embeddings=vectors)
        emit(self.change(done))


@pytest.fixture
def embedder():
    return Embedder()


@pytest.fixture
def client(embedder):
    @asynccontextmanager
    async def start():
        router = Router()
        OpenAIRoutes(embedder, list).mount(router)
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                port = await nursery.start(serve, router, "127.0.0.1", 0)
                async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=20) as http:
                    yield http
                nursery.cancel_scope.cancel()

    return start


async def test_a_reply_is_openais(client, schema):
    async with client() as http:
        reply = await http.post("/v1/embeddings", json={"model": "m", "input": ["ab", "abc"], "user": "u", "colour": 1})
    assert reply.status_code == 200
    schema.check("CreateEmbeddingResponse", reply.json())
    assert [one["embedding"] for one in reply.json()["data"]] == [[2.0, 1.0], [3.0, 1.0]]
    assert [one["index"] for one in reply.json()["data"]] == [0, 1]
    assert reply.json()["usage"] == {"prompt_tokens": 2, "total_tokens": 2}
    assert reply.headers["x-infermesh-node"] == "node-a"
    assert reply.headers["x-infermesh-ignored"] == "colour"


async def test_base64_holds_the_same_floats(client):
    async with client() as http:
        reply = await http.post("/v1/embeddings", json={"model": "m", "input": "abc", "encoding_format": "base64"})
    assert base64.b64decode(reply.json()["data"][0]["embedding"]) == pack([3.0, 1.0])


@pytest.mark.parametrize(
    ("given", "asked"),
    [("text", ["text"]), (["a", "b"], ["a", "b"]), ([5, 6], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]]), (["a", [7]], ["a", [7]])],
    ids=["text", "texts", "ids", "lists of ids", "mixed"],
)
async def test_inputs_are_texts_or_token_ids(client, embedder, given, asked):
    async with client() as http:
        reply = await http.post("/v1/embeddings", json={"model": "m", "input": given, "dimensions": 2})
    assert reply.status_code == 200
    (request,) = embedder.requests
    assert (request.task, request.inputs, request.dimensions, request.stream) == ("embedding", asked, 2, False)


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"model": "m"}, "input"),
        ({"input": "x"}, "model"),
        ({"model": "", "input": "x"}, "model"),
        ({"model": "m", "input": ""}, "input"),
        ({"model": "m", "input": []}, "input"),
        ({"model": "m", "input": ["a", ""]}, "input[1]"),
        ({"model": "m", "input": [[1], []]}, "input[1]"),
        ({"model": "m", "input": ["a", 1]}, "input"),
        ({"model": "m", "input": [1, -1]}, "input"),
        ({"model": "m", "input": {"a": 1}}, "input"),
        ({"model": "m", "input": ["x"] * (MAX_INPUTS + 1)}, "input"),
        ({"model": "m", "input": "x", "dimensions": 0}, "dimensions"),
        ({"model": "m", "input": "x", "encoding_format": "int8"}, "encoding_format"),
    ],
    ids=str,
)
async def test_a_bad_request_names_the_field(client, embedder, body, param):
    async with client() as http:
        reply = await http.post("/v1/embeddings", json=body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)
    assert not embedder.requests


async def test_many_inputs_are_several_requests_and_one_answer(client, embedder):
    inputs = ["x" * (1 + index % 7) for index in range(MOST_AT_ONCE * 2 + 1)]
    async with client() as http:
        reply = await http.post("/v1/embeddings", json={"model": "m", "input": inputs})
    assert [one["embedding"][0] for one in reply.json()["data"]] == [float(len(one)) for one in inputs]
    assert [len(request.inputs) for request in embedder.requests] == [MOST_AT_ONCE, MOST_AT_ONCE, 1]
    assert len({request.request_id for request in embedder.requests}) == 3
    assert reply.json()["usage"]["total_tokens"] == len(inputs)


async def test_long_inputs_go_alone(client, embedder):
    inputs = ["x" * MOST_SIZE_AT_ONCE, "y", "z" * MOST_SIZE_AT_ONCE]
    async with client() as http:
        await http.post("/v1/embeddings", json={"model": "m", "input": inputs})
    assert [request.inputs for request in embedder.requests] == [[one] for one in inputs]


async def test_parts_that_were_computed_differently_are_no_answer(client, embedder):
    embedder.numerics = ["n", "other"]
    async with client() as http:
        reply = await http.post("/v1/embeddings", json={"model": "m", "input": ["x"] * (MOST_AT_ONCE + 1)})
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "mixed_numerics")


@pytest.mark.parametrize("vectors", [None, [], [b"1234"], [b"123", b"123"], [b"1234", b"12345678"], [b"", b""]], ids=str)
async def test_an_answer_without_a_vector_for_each_input_is_an_error(client, embedder, vectors):
    embedder.change = lambda done: msgspec.structs.replace(done, embeddings=vectors)
    async with client() as http:
        reply = await http.post("/v1/embeddings", json={"model": "m", "input": ["a", "b"]})
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "bad_embeddings")


async def test_openais_own_client(client):
    async with client() as http:

        def ask():
            with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0) as official:
                # Without `encoding_format` it asks for base64 and decodes it.
                create = partial(official.embeddings.create, model="m", input=["ab", "abc"])
                return [create().data, create(encoding_format="float").data]

        for data in await trio.to_thread.run_sync(ask):
            assert [list(one.embedding) for one in data] == [[2.0, 1.0], [3.0, 1.0]]


async def test_more_vectors_than_an_answer_holds_are_refused(client, embedder, monkeypatch):
    monkeypatch.setattr(embedding, "MAX_VECTOR_BYTES", 8 * (MOST_AT_ONCE + 1))
    async with client() as http:
        fits = await http.post("/v1/embeddings", json={"model": "m", "input": ["x"] * (MOST_AT_ONCE + 1)})
        more = await http.post("/v1/embeddings", json={"model": "m", "input": ["x"] * (MOST_AT_ONCE + 2)})
    assert fits.status_code == 200
    assert (more.status_code, more.json()["error"]["code"]) == (400, "answer_too_large")
