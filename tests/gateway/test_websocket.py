import base64
import json

import pytest
import trio
from websockets.exceptions import ConnectionClosed

from gateway import delivery, socket_answers
from mesh.embedding import MOST_AT_ONCE
from mesh.errors import BackendFailed, BadRequest
from mesh.messages.inference import Accepted, Delta, Done, Performance, Usage
from mesh.vectors import pack
from tests.gateway.served import Client, endless, hang


async def test_three_streams_at_once_a_cancel_a_ping_and_a_node_that_joins(opened, mesh, words):
    await mesh.node(endless, endless, endless)
    async with opened() as client:
        await client.say(type="subscribe", topics=["status"])
        assert (await client.until("subscribed"))["topics"] == ["status"]
        assert (await client.until("event"))["event"] == "snapshot"
        for name in ("one", "two", "three"):
            await client.infer(name)
        for name in ("one", "two", "three"):
            await client.until("inference_chunk", request_id=name)
        await client.say(type="ping")
        await client.until("pong")
        await client.say(type="cancel", request_id="two")
        await client.until("inference_cancelled", request_id="two")
        joined = await mesh.node()
        event = await client.until("event", topic="status", event="service_changed")
        assert (event["data"]["change"], event["data"]["service"]["id"]) == ("joined", joined.peer_id)
        for name in ("one", "three"):
            chunk = await client.until("inference_chunk", request_id=name)
            assert chunk["chunk"] == f"{chunk['index']} "
            await client.say(type="cancel", request_id=name)
            await client.until("inference_cancelled", request_id=name)


async def test_a_streamed_inference_from_start_to_end(opened, mesh, words):
    node = await mesh.node()
    async with opened() as client:
        await client.infer("r")
        started = await client.next()
        assert {"type": "inference_started", "request_id": "r", "model": "m", "node": node.peer_id}.items() <= started.items()
        assert started["resume_token"] is None, "this node keeps nothing"
        chunks = [await client.next() for _ in words]
        assert [(chunk["chunk"], chunk["index"], chunk["tokens"]) for chunk in chunks] == [(w, i, 1) for i, w in enumerate(words)]
        complete = await client.next()
        assert (complete["type"], complete["finish_reason"]) == ("inference_complete", "stop")
        assert complete["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
        assert complete["performance"]["prefill_time_ms"] == 1.0


async def test_an_inference_in_one_piece_with_an_id_of_ours(opened, mesh, words):
    await mesh.node()
    async with opened() as client:
        await client.say(type="inference", model="m", messages=[{"role": "user", "content": "hi"}])
        result = await client.next()
        assert result["type"] == "inference_result"
        assert result["request_id"]
        assert (result["model"], result["task"], result["result"]["text"]) == ("m", "text-generation", "".join(words))


async def test_an_answer_in_one_piece_has_a_bound(opened, mesh, monkeypatch):
    monkeypatch.setattr(socket_answers, "MAX_REPLY_CHARACTERS", 50)
    monkeypatch.setattr(delivery, "MAX_HELD_CHARACTERS", 20)
    node = await mesh.node(endless)
    async with opened() as client:
        await client.infer("r1", stream=False)
        failed = await client.until("inference_error", request_id="r1")
        assert failed["error"]["code"] == "reply_too_large"
        await mesh.until(lambda: len(node.cancelled) == 1)
        await client.infer("r2", stream=False)
        assert (await client.next())["type"] == "inference_result"


@pytest.mark.parametrize(
    ("sent", "says"),
    [
        ("no json", "not a JSON object"),
        ('{"type": "dance", "request_id": "r9"}', "unknown message type"),
        ('{"type": "inference", "request_id": "r9"}', "model"),
        ('{"type": "subscribe", "topics": ["weather"]}', "backend, inference, metrics, node, queue, status"),
        ('{"type": "cancel", "request_id": "r9"}', "no request 'r9'"),
    ],
)
async def test_bad_messages_are_answered_and_the_socket_goes_on(opened, sent, says):
    async with opened() as client:
        await client._socket.send(sent)
        error = await client.next()
        assert error["type"] == "error"
        assert says in error["message"]
        assert error.get("request_id") == ("r9" if "r9" in sent else None)
        await client.say(type="ping")
        assert (await client.next())["type"] == "pong"


async def test_options_reach_the_node_and_bad_ones_are_named(opened, mesh):
    node = await mesh.node()
    async with opened() as client:
        wishes = {"priority": 5, "deadline_ms": 60_000, "hedge": False, "prompt_cache_key": "talk"}
        await client.infer("r1", options=wishes)
        await client.until("inference_complete", request_id="r1")
        (asked,) = node.requests
        assert (asked.priority, asked.affinity) == (5, "talk")
        assert 0 < asked.deadline_ms <= 60_000
        assert asked.keep, "it can be picked up"
        await client.infer("r2", options={"resume": False})
        await client.until("inference_complete", request_id="r2")
        assert (node.requests[1].resume, node.requests[1].keep) == (False, b"")
        for options, says in (({"priority": 101}, "$.options.priority"), ({"prioritty": 1}, "`prioritty`")):
            await client.infer("r3", options=options)
            error = await client.next()
            assert (error["type"], error["request_id"]) == ("error", "r3")
            assert says in error["message"]
        assert len(node.requests) == 2


async def test_a_deadline_that_passes_ends_the_request(opened, mesh):
    node = await mesh.node(hang)
    async with opened() as client:
        await client.infer("r", options={"deadline_ms": 200})
        failed = await client.until("inference_error", request_id="r")
        assert failed["error"]["code"] == "request_timeout"
        await mesh.until(lambda: len(node.cancelled) == 1)


async def test_without_resuming_a_loss_is_an_error(opened, mesh, failing):
    for _ in range(2):
        await mesh.node(failing(BackendFailed("dead", code="worker_died"), after=2))
    async with opened() as client:
        await client.infer("r", options={"resume": False})
        failed = await client.until("inference_error", request_id="r")
        assert failed["error"]["code"] == "stream_interrupted"


async def embed(request, emit):
    """Each input's vector is its length and 0.5."""
    emit(Accepted())
    vectors = [pack([float(len(one)), 0.5]) for one in request.inputs]
    emit(Done("stop", Usage(len(vectors), 0), Performance(1.0, 0.0, 0.0, 0.0, 1), embeddings=vectors))


async def test_embeddings_in_one_piece(opened, mesh):
    node = await mesh.node(*[embed] * 3, tasks=("embedding",))
    async with opened() as client:
        await client.say(type="inference", request_id="r", model="m", task="text-embedding", inputs=["ab", [1, 2, 3]])
        result = await client.next()
        assert (result["type"], result["request_id"], result["model"]) == ("inference_result", "r", "m")
        assert result["task"] == "text-embedding"
        assert result["result"] == {
            "embeddings": [[2.0, 0.5], [3.0, 0.5]],
            "usage": {"prompt_tokens": 2, "total_tokens": 2},
        }
        parameters = {"encoding_format": "base64", "dimensions": 2}
        await client.say(type="inference", model="m", task="text-embedding", inputs="abc", parameters=parameters)
        (worded,) = (await client.next())["result"]["embeddings"]
        assert base64.b64decode(worded) == pack([3.0, 0.5])
        assert node.requests[-1].dimensions == 2


async def test_a_stream_of_embeddings_is_one_message_each(opened, mesh):
    node = await mesh.node(*[embed] * 9, tasks=("embedding",))
    inputs = ["x" * (1 + index % 9) for index in range(MOST_AT_ONCE * 2 + 1)]
    async with opened() as client:
        await client.say(type="inference", request_id="r", model="m", task="text-embedding", inputs=inputs, stream=True)
        started = await client.next()
        assert (started["type"], started["node"]) == ("inference_started", node.peer_id)
        chunks = [await client.next() for _ in inputs]
        assert [(chunk["index"], chunk["embedding"][0]) for chunk in chunks] == [(i, len(one)) for i, one in enumerate(inputs)]
        complete = await client.next()
        assert (complete["type"], complete["usage"]["total_tokens"]) == ("inference_complete", len(inputs))
        assert len(node.requests) == 3


async def test_embeddings_in_one_message_are_bounded_and_a_stream_of_them_is_not(opened, mesh, monkeypatch):
    monkeypatch.setattr(socket_answers, "MAX_VECTOR_CHARACTERS", 50)
    await mesh.node(*[embed] * 9, tasks=("embedding",))
    async with opened() as client:
        asked = {"type": "inference", "model": "m", "task": "text-embedding", "inputs": ["x"] * 20}
        await client.say(**asked, request_id="r1")
        failed = await client.next()
        assert (failed["type"], failed["error"]["code"]) == ("inference_error", "reply_too_large")
        await client.say(**asked, request_id="r2", stream=True)
        assert (await client.until("inference_complete"))["request_id"] == "r2"


@pytest.mark.parametrize(
    ("asked", "param"),
    [({"inputs": []}, "inputs"), ({"inputs": "x", "parameters": {"dimensions": -1}}, "dimensions"), ({}, "inputs")],
    ids=["no inputs", "no dimensions", "nothing"],
)
async def test_embeddings_that_cannot_be_are_refused(opened, mesh, asked, param):
    node = await mesh.node(embed, tasks=("embedding",))
    async with opened() as client:
        await client.say(type="inference", request_id="r", model="m", task="text-embedding", **asked)
        failed = await client.next()
        assert (failed["type"], failed["error"]["param"]) == ("inference_error", param)
    assert not node.requests


async def test_embeddings_can_be_cancelled(opened, mesh):
    node = await mesh.node(hang, tasks=("embedding",))
    async with opened() as client:
        await client.say(type="inference", request_id="r", model="m", task="text-embedding", inputs="x")
        await mesh.until(lambda: len(node.requests) == 1)
        await client.say(type="cancel", request_id="r")
        assert (await client.next())["type"] == "inference_cancelled"
        await mesh.until(lambda: len(node.cancelled) == 1)


async def test_resuming_is_refused_as_gone(opened):
    async with opened() as client:
        await client.say(type="resume", resume_token="t", index=3)
        assert (await client.next())["code"] == "stream_not_found"


async def test_a_failed_inference_says_why_and_ends_once(opened, mesh, failing):
    await mesh.node(failing(BadRequest("too long", code="context_length_exceeded")), failing(BadRequest("odd"), after=1))
    async with opened() as client:
        await client.infer("a")
        error = await client.next()
        assert (error["type"], error["request_id"], error["error"]["code"]) == ("inference_error", "a", "context_length_exceeded")
        await client.infer("b")
        assert [(await client.next())["type"] for _ in range(2)] == ["inference_started", "inference_chunk"]
        assert (await client.next())["error"]["message"] == "odd"
        await client.infer("c", model="nobody")
        assert (await client.next())["error"]["code"] == "model_not_found"
        await client.infer("d", task="rerank")
        assert (await client.next())["error"]["code"] == "unsupported_task"
        await client.say(type="ping")
        assert (await client.next())["type"] == "pong"


async def test_requests_per_socket_are_bounded_and_ids_are_unique(served, opened, mesh):
    node = await mesh.node(*[hang] * 70)
    async with opened() as client:
        await client.infer("same")
        await client.infer("same")
        assert (await client.until("error"))["code"] == "request_id_in_use"
        for number in range(64):
            await client.infer(str(number))
        error = await client.until("error")
        assert (error["request_id"], error["code"]) == ("63", "busy")
    await mesh.until(lambda: served.gateway.service.in_flight == 0)
    await mesh.until(lambda: len(node.cancelled) == len(node.requests) > 0)


async def test_one_client_leaving_does_not_touch_another_with_a_like_name(opened, mesh):
    node = await mesh.node(endless, endless)
    async with opened("client10") as stays, opened("client1") as goes:
        await stays.infer("r")
        await stays.until("inference_chunk")
        await goes.infer("r")
        await goes.until("inference_chunk")
        await goes._socket.aclose()
        await mesh.until(lambda: len(node.cancelled) == 1)
        for _ in range(20):
            await stays.until("inference_chunk")
        assert len(node.cancelled) == 1


async def test_subscriptions_are_of_the_socket_and_end_with_unsubscribe(opened, mesh):
    async with opened("x") as one, opened("x") as two:
        await one.say(type="subscribe", topics=["node"])
        assert (await one.until("event", topic="node"))["data"] == []
        node = await mesh.node()
        assert (await one.until("event", event="joined"))["data"]["peer_id"] == node.peer_id
        await two.say(type="ping")
        assert (await two.next())["type"] == "pong"
        await one.say(type="unsubscribe", topics=["node"])
        await one.until("unsubscribed")
        await mesh.node()
        await one.say(type="ping")
        assert (await one.next())["type"] == "pong"


async def test_every_topic_has_a_snapshot_and_the_lively_ones_tell(opened, mesh):
    node = await mesh.node()
    topics = ["backend", "inference", "metrics", "node", "queue", "status"]
    async with opened() as client:
        await client.say(type="subscribe", topics=topics)
        await client.until("subscribed")
        assert [(await client.next())["topic"] for _ in topics] == topics
        await client.infer("r", stream=False)
        started = await client.until("event", topic="inference", event="started")
        finished = await client.until("event", topic="inference", event="finished")
        assert started["data"]["request_id"] == finished["data"]["request_id"]
        assert (finished["data"]["outcome"], finished["data"]["node"]) == ("succeeded", node.peer_id)
        assert "hi" not in json.dumps([started["data"], finished["data"]]).split('"')
        node.announce("failed", running=1, waiting=2)
        changed = await client.until("event", topic="backend", event="state_changed")
        assert (changed["data"]["model"], changed["data"]["state"], changed["data"]["before"]) == ("m", "failed", "ready")
        depth = await client.until("event", topic="queue", event="depth")
        assert {"model": "m", "running": 1, "waiting": 2}.items() <= depth["data"][0].items()
        node.kill()
        left = await client.until("event", topic="node", event="left")
        assert left["data"]["peer_id"] == node.peer_id


async def test_status_is_a_summary_or_everything(opened, mesh):
    await mesh.node()
    async with opened() as client:
        await client.say(type="status")
        summary = await client.next()
        assert summary["backend_status"]["total_backends"] == 1
        assert "backends" not in summary["backend_status"]
        await client.say(type="status", details=True)
        assert len((await client.next())["backend_status"]["backends"]) == 1


async def test_stopping_lets_streams_end_and_closes_with_1001(served, mesh, words):
    release = trio.Event()

    async def slow(request, emit):
        emit(Accepted())
        emit(Delta(0, [1], "x"))
        await release.wait()
        raise BackendFailed("the end")

    await mesh.node(slow)
    async with served.socket() as raw:
        client = Client(raw)
        await client.infer("r")
        await client.until("inference_chunk")
        served.stopping.set()
        await trio.sleep(0.05)
        assert not served.stopped.is_set()
        release.set()
        assert (await client.until("inference_error"))["request_id"] == "r"
        with pytest.raises(ConnectionClosed) as closed:
            await client.next()
        assert closed.value.rcvd.code == 1001
    with trio.fail_after(10):
        await served.stopped.wait()


async def test_a_client_id_has_a_bound(served, http):
    headers = {
        "upgrade": "websocket",
        "connection": "upgrade",
        "sec-websocket-key": "eA==",
        "sec-websocket-version": "13",
    }
    assert (await http.get(f"{served.url}/ws/{'x' * 200}", headers=headers)).status_code == 400
