"""Embeddings through a gateway's dispatch: to the nodes that do them, and retried whole."""

from __future__ import annotations

import pytest

from gateway.dispatch import Dispatch
from gateway.routing.router import Router
from mesh.errors import BackendFailed, BadRequest
from mesh.messages.inference import Accepted, Done, InferenceRequest, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry
from mesh.vectors import pack

VECTOR = pack([1.0, 0.0])


def request(task="embedding", **fields) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", task=task, stream=False, **fields)


async def embed(request, emit):
    performance = Performance(prefill_time_ms=1, decode_time_ms=0, queue_time_ms=0, tokens_per_second=0, batch_size=1)
    emit(Accepted())
    emit(Done(finish_reason="stop", usage=Usage(3, 0), performance=performance, embeddings=[VECTOR] * len(request.inputs)))


async def announce(mesh, node, *tasks):
    entry = ModelEntry(id="m", state="ready", numerics="n-1", capabilities=Capabilities(tasks=list(tasks)))
    node.peer.announce([entry], {"m": ModelLoad("ready", slots=4)})
    await mesh.until(lambda: mesh.gateway.registry.peers[node.peer_id].record.models[0].capabilities.tasks == list(tasks))


async def test_an_answer_comes_through_and_says_how_it_was_computed(mesh):
    node = await mesh.node(embed)
    await announce(mesh, node, "embedding")
    dispatch, events = Dispatch(Router(mesh.gateway.registry)), []
    await dispatch.infer(request(inputs=["a", [1, 2]]), events.append)
    accepted, done = events
    assert (accepted.node, accepted.numerics) == (node.peer_id, "n-1")
    assert done.embeddings == [VECTOR, VECTOR]
    assert node.requests[0].inputs == ["a", [1, 2]]


async def test_another_node_embeds_what_the_first_one_lost(mesh):
    nodes = [await mesh.node() for _ in range(2)]
    for node in nodes:
        await announce(mesh, node, "embedding")
    first, events = [], []

    async def broken_then_well(request, emit):
        first.append(request)
        if len(first) == 1:
            raise BackendFailed("broken")
        await embed(request, emit)

    for node in nodes:
        node.script[:] = [broken_then_well]
    await Dispatch(Router(mesh.gateway.registry)).infer(request(inputs=["a"]), events.append)
    assert [len(node.requests) for node in nodes] == [1, 1]
    assert isinstance(events[-1], Done)


async def test_a_chat_with_a_model_for_embeddings_is_refused_at_once(mesh):
    node = await mesh.node()
    await announce(mesh, node, "embedding")
    with pytest.raises(BadRequest, match="m is for embedding, not for chat"):
        await Dispatch(Router(mesh.gateway.registry)).infer(request("chat", messages=[]), lambda _: None)
    assert not node.requests
