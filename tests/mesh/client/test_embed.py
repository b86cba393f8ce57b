"""Embeddings by the client in a mesh of memory."""

from __future__ import annotations

import pytest
import trio

from mesh import embedding
from mesh.embedding import MAX_INPUTS, MOST_AT_ONCE
from mesh.errors import BackendFailed, BadRequest, Unavailable
from mesh.messages.inference import Accepted, Done, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry
from mesh.vectors import pack


class Embedder:
    """Each input's vector is its length and what the node is called; or an error."""

    def __init__(self, number=0.0, error=None):
        self.asked = []
        self._number = number
        self._error = error

    async def infer(self, request, emit):
        self.asked.append(request)
        if self._error is not None:
            raise self._error
        emit(Accepted())
        vectors = [pack([float(len(one)), self._number]) for one in request.inputs]
        emit(Done("stop", Usage(len(vectors), 0), Performance(1, 0, 0, 0, 1), embeddings=vectors))


async def node(village, service, numerics="n"):
    """Add a node of such numerics."""
    peer = village.peer("node", service)
    entry = ModelEntry(id="m", state="ready", numerics=numerics, capabilities=Capabilities(tasks=["embedding"]))
    peer.announce([entry], {"m": ModelLoad("ready", slots=4)})
    await village.nursery.start(peer.run)
    return peer


async def linked(client, count):
    with trio.fail_after(30):
        while len(client.nodes()) < count:  # noqa: ASYNC110 - the client tells nobody
            await trio.sleep(0.1)


async def test_vectors_of_texts_and_token_ids(village, autojump_clock):
    async with village() as here:
        service = Embedder()
        peer = await node(here, service)
        async with here.client() as client:
            got = await client.embed("m", ["a", [1, 2, 3]], dimensions=2)
            assert (got.vectors, got.prompt_tokens, got.node) == ([[1.0, 0.0], [3.0, 0.0]], 2, peer.peer_id)
            assert (await client.embed("m", "four")).vectors == [[4.0, 0.0]]
    assert [(asked.task, asked.dimensions) for asked in service.asked] == [("embedding", 2), ("embedding", None)]


async def test_many_inputs_are_several_requests(village, autojump_clock):
    async with village() as here:
        service = Embedder()
        await node(here, service)
        inputs = ["x" * (1 + index % 7) for index in range(MOST_AT_ONCE * 2 + 1)]
        async with here.client() as client:
            got = await client.embed("m", inputs)
    assert [vector[0] for vector in got.vectors] == [float(len(one)) for one in inputs]
    assert len(service.asked) == 3


async def test_a_part_that_fails_is_made_by_another_node(village, autojump_clock):
    async with village() as here:
        await node(here, Embedder(error=BackendFailed("broken")))
        good = await node(here, Embedder())
        async with here.client() as client:
            await linked(client, 2)
            got = await client.embed("m", ["x"] * (MOST_AT_ONCE + 1))
    assert (len(got.vectors), got.node) == (MOST_AT_ONCE + 1, good.peer_id)


async def test_vectors_that_cannot_be_compared_are_no_answer(village, autojump_clock):
    class Once(Embedder):
        async def infer(self, request, emit):
            if self.asked:
                raise BackendFailed("broken")
            await super().infer(request, emit)

    async with village() as here:
        await node(here, Once(), "one")
        await node(here, Once(), "other")
        async with here.client() as client:
            await linked(client, 2)
            with pytest.raises(Unavailable) as caught:
                await client.embed("m", ["x"] * (MOST_AT_ONCE + 1))
    assert caught.value.code == "mixed_numerics"


async def test_all_vectors_together_are_bounded(village, autojump_clock, monkeypatch):
    monkeypatch.setattr(embedding, "MAX_VECTOR_BYTES", 8 * MOST_AT_ONCE)
    async with village() as here:
        await node(here, Embedder())
        async with here.client() as client:
            assert len((await client.embed("m", ["x"] * MOST_AT_ONCE)).vectors) == MOST_AT_ONCE
            with pytest.raises(BadRequest) as caught:
                await client.embed("m", ["x"] * (MOST_AT_ONCE + 1))
    assert caught.value.code == "answer_too_large"


@pytest.mark.parametrize(
    ("inputs", "dimensions", "param"),
    [
        ([], None, "inputs"),
        ("", None, "inputs"),
        (["a", ""], None, "inputs[1]"),
        (["x"] * (MAX_INPUTS + 1), None, "inputs"),
        ([1.5], None, "inputs[0]"),
        ({"a": 1}, None, "inputs"),
        ("x", 0, "dimensions"),
        ([object()], None, None),
    ],
    ids=["none", "empty", "one empty", "too many", "no token", "no list", "no dimensions", "an object"],
)
async def test_a_wrong_argument_is_named_before_anything_is_sent(village, autojump_clock, inputs, dimensions, param):
    async with village() as here, here.client() as client:
        with pytest.raises(BadRequest) as caught:
            await client.embed("m", inputs, dimensions=dimensions)
        assert caught.value.param == param
