import json
import secrets
from contextlib import AsyncExitStack

import httpx2
import msgspec
import pytest
import trio
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect

from gateway import delivery, websocket
from gateway.admission import AdmissionLimits
from gateway.app import Gateway
from gateway.dispatch import DispatchLimits
from mesh.errors import BackendFailed, BadRequest
from mesh.http import serve
from mesh.messages.inference import Accepted, Delta, Done, Performance, Usage
from mesh.messages.link import ModelLoad


class Served:
    """A gateway behind a real port."""

    def __init__(self, gateway: Gateway, port: int, stopping: trio.Event) -> None:
        self.gateway = gateway
        self.port = port
        self.stopping = stopping
        self.stopped = trio.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def socket(self, client_id: str = "me"):
        return connect(f"ws://127.0.0.1:{self.port}/ws/{client_id}")


@pytest.fixture
async def served(mesh, nursery):
    gateway = Gateway(mesh.gateway.registry, strategy="round_robin", limits=DispatchLimits(queue_wait=0.2))
    stopping = trio.Event()
    nursery.start_soon(gateway.run)
    holder: list[Served] = []

    async def listen(*, task_status):
        await serve(gateway.router, "127.0.0.1", 0, stopping=stopping, task_status=task_status)
        holder[0].stopped.set()

    port = await nursery.start(listen)
    holder.append(Served(gateway, port, stopping))
    return holder[0]


@pytest.fixture
async def http():
    async with httpx2.AsyncClient(timeout=10) as client:
        yield client


class Client:
    """One socket and all it was told."""

    def __init__(self, socket) -> None:
        self._socket = socket

    async def say(self, **message) -> None:
        await self._socket.send(json.dumps(message))

    async def next(self) -> dict:
        with trio.fail_after(10):
            message = json.loads(await self._socket.recv())
        assert message["timestamp"].endswith("Z")
        return message

    async def until(self, kind: str, **fields) -> dict:
        while True:
            message = await self.next()
            if message["type"] == kind and all(message.get(key) == value for key, value in fields.items()):
                return message

    async def infer(self, request_id: str, **more) -> None:
        asked = {"model": "m", "inputs": "hi", "stream": True, "parameters": {"max_new_tokens": 100_000}}
        await self.say(type="inference", request_id=request_id, **asked | more)


@pytest.fixture
def opened(served):
    """Open a socket and take its greeting."""

    class Opened:
        def __init__(self, client_id: str = "me") -> None:
            self._context = served.socket(client_id)

        async def __aenter__(self) -> Client:
            client = Client(await self._context.__aenter__())
            assert (await client.next())["type"] == "connection"
            return client

        async def __aexit__(self, *error) -> None:
            await self._context.__aexit__(*error)

    return Opened


async def endless(request, emit):
    emit(Accepted())
    offset = 0
    while True:
        emit(Delta(offset, [offset], f"{offset} "))
        offset += 1
        await trio.sleep(0.005)


async def hang(request, emit):
    emit(Accepted())
    await trio.sleep_forever()


# HTTP


async def test_health_is_alive_and_counts_services_truthfully(served, http, mesh):
    body = (await http.get(f"{served.url}/health")).json()
    assert {"status": "healthy", "mode": "api_server", "router": True}.items() <= body.items()
    assert (body["healthy_services"], body["total_services"]) == (0, 0)
    node = await mesh.node()
    await mesh.node(state="failed")
    body = (await http.get(f"{served.url}/health")).json()
    assert (body["healthy_services"], body["total_services"]) == (2, 4)  # a node is two services
    node.announce("failed")
    await mesh.sees(node, "failed")
    body = (await http.get(f"{served.url}/health")).json()
    assert (body["healthy_services"], body["total_services"]) == (0, 4)


async def test_ready_only_while_a_model_can_be_served(served, http, mesh):
    answer = await http.get(f"{served.url}/ready")
    assert (answer.status_code, answer.json()["ready"], answer.json()["engine_connected"]) == (503, False, False)
    node = await mesh.node()
    answer = await http.get(f"{served.url}/ready")
    assert (answer.status_code, answer.json()["ready"], answer.json()["engine_connected"]) == (200, True, True)
    node.announce("loading")
    await mesh.sees(node, "loading")
    assert (await http.get(f"{served.url}/ready")).status_code == 503


async def test_status_counts_requests_once_and_tells_levels(served, http, mesh, failing):
    nodes = sorted([await mesh.node(), await mesh.node()], key=lambda node: node.peer_id)
    loading = await mesh.node(models=("other",), state="loading")
    nodes[0].script.append(failing(BackendFailed("boom")))
    body = {"model": "m", "prompt": "hi"}
    answer = await http.post(f"{served.url}/v1/completions", json=body)
    assert answer.status_code == 200
    assert answer.headers["x-infermesh-node"] == nodes[1].peer_id
    assert answer.headers["x-infermesh-attempts"] == "2"
    report = (await http.get(f"{served.url}/status")).json()
    assert (report["total_backends"], report["total_requests"], report["total_successful"]) == (3, 1, 1)
    assert report["supported_tasks"] == ["text-generation"]
    backends = {backend["id"]: backend for backend in report["backends"]}
    assert [backends[node.peer_id]["status"] for node in (*nodes, loading)] == ["degraded", "healthy", "initializing"]
    assert backends[nodes[0].peer_id]["metrics"]["failed"] == 1
    assert backends[nodes[1].peer_id]["metrics"]["successful"] == 1
    assert backends[nodes[1].peer_id]["metrics"]["avg_latency_ms"] > 0
    assert [backends[node.peer_id]["metrics"]["uptime"] for node in (*nodes, loading)] == [77, 77, None]


async def test_a_route_is_explained(served, http, mesh):
    node = await mesh.node(aliases=("short",))
    asleep = await mesh.node(state="loading")
    body = (await http.get(f"{served.url}/v1/route?model=short")).json()
    assert (body["model"], body["strategy"]) == ("m", "round_robin")
    assert [candidate["peer_id"] for candidate in body["candidates"]] == [node.peer_id]
    assert body["not_considered"][0]["peer_id"] == asleep.peer_id
    assert "loading" in body["not_considered"][0]["reason"]
    assert (await http.get(f"{served.url}/v1/route?model=nobody")).status_code == 404
    assert (await http.get(f"{served.url}/v1/route")).status_code == 400


async def test_peers_are_listed_with_their_models(served, http, mesh):
    node = await mesh.node()
    peers = (await http.get(f"{served.url}/v1/mesh/peers")).json()["peers"]
    found = next(peer for peer in peers if peer["peer_id"] == node.peer_id)
    assert (found["role"], found["linked"], found["name"], found["carrier"]) == ("node", True, "node-1", "memory")
    assert found["via"] is None
    assert [(model["id"], model["state"], model["slots"]) for model in found["models"]] == [("m", "ready", 4)]


async def test_a_node_with_64_models_serves_them_all(served, http, mesh, words):
    names = tuple(f"organisation/Model-{number}-Instruct" for number in range(64))
    node = await mesh.node(models=names)
    full = [
        msgspec.structs.replace(entry, weights_digest=secrets.token_hex(32), numerics=secrets.token_hex(16), backend="torch")
        for entry in node.models
    ]
    node.peer.announce(full, {entry.id: ModelLoad(state="ready", slots=4) for entry in full})
    await mesh.until(lambda: all(entry.numerics for entry in mesh.gateway.registry.catalog()))
    listed = (await http.get(f"{served.url}/v1/models")).json()["data"]
    assert [entry["id"] for entry in listed] == sorted(names)
    for name in names[::21]:
        body = {"model": name, "messages": [{"role": "user", "content": "x"}]}
        answer = (await http.post(f"{served.url}/v1/chat/completions", json=body)).json()
        assert answer["choices"][0]["message"]["content"] == "".join(words)


async def test_openai_errors_of_dispatch_reach_the_client(served, http, mesh, failing):
    assert (await http.post(f"{served.url}/v1/completions", json={"model": "x", "prompt": "hi"})).status_code == 404
    node = await mesh.node(failing(BadRequest("too long", code="context_length_exceeded")))
    answer = await http.post(f"{served.url}/v1/completions", json={"model": "m", "prompt": "hi"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "context_length_exceeded")
    node.announce("failed")
    await mesh.sees(node, "failed")
    answer = await http.post(f"{served.url}/v1/completions", json={"model": "m", "prompt": "hi"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) > 0


async def begin_stream(port: int) -> trio.SocketStream:
    """A raw client that has read the first chunk of a stream: it can go away at any moment."""
    body = b'{"model": "m", "prompt": "hi", "stream": true, "max_tokens": 100000}'
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    await stream.send_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    received = b""
    with trio.fail_after(10):
        while b"data:" not in received:
            received += await stream.receive_some(4096)
    return stream


async def test_a_full_gateway_answers_429(mesh, nursery, http):
    gateway = Gateway(mesh.gateway.registry, admission=AdmissionLimits(requests=1))
    port = await nursery.start(serve, gateway.router, "127.0.0.1", 0)
    await mesh.node(endless)
    async with await begin_stream(port):
        answer = await http.post(f"http://127.0.0.1:{port}/v1/completions", json={"model": "m", "prompt": "hi"})
        assert answer.status_code == 429
        assert "retry-after" in answer.headers
    await mesh.until(lambda: gateway.service.in_flight == 0)
    answer = await http.post(f"http://127.0.0.1:{port}/v1/completions", json={"model": "m", "prompt": "hi"})
    assert answer.status_code == 200


async def test_who_waits_in_line_and_goes_away_leaves_it(mesh, nursery, http):
    gateway = Gateway(mesh.gateway.registry)
    port = await nursery.start(serve, gateway.router, "127.0.0.1", 0)
    node = await mesh.node(*[endless] * 9)
    async with AsyncExitStack() as streams:
        for _ in range(5):
            await streams.enter_async_context(await begin_stream(port))
        body = b'{"model": "m", "prompt": "hi"}'
        async with await trio.open_tcp_stream("127.0.0.1", port) as waiting:
            head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\nx-infermesh-priority: 3\r\ncontent-length: %d\r\n\r\n" % len(
                body
            )
            await waiting.send_all(head + body)
            await mesh.until(lambda: gateway.service.report()["waiting"] == 1)
            told = (await http.get(f"http://127.0.0.1:{port}/status")).json()
            assert told["admission"]["models"]["m"]["under_way"] == 5
            assert told["requests"] == {"streaming": 5}
        await mesh.until(lambda: gateway.service.report()["waiting"] == 0)
    await mesh.until(lambda: gateway.service.in_flight == 0)
    assert len(node.requests) == 5


async def test_a_full_line_answers_429_and_says_when_to_come_back(mesh, nursery, http):
    gateway = Gateway(mesh.gateway.registry, admission=AdmissionLimits(waiting=0, tenant_waiting=0))
    port = await nursery.start(serve, gateway.router, "127.0.0.1", 0)
    await mesh.node(*[endless] * 9)
    async with AsyncExitStack() as streams:
        for _ in range(5):
            await streams.enter_async_context(await begin_stream(port))
        answer = await http.post(f"http://127.0.0.1:{port}/v1/completions", json={"model": "m", "prompt": "hi"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
        assert gateway.service.report()["refused"] == {"queue_full": 1}


async def test_a_client_that_goes_away_cancels_the_node(served, mesh):
    node = await mesh.node(endless)
    async with await begin_stream(served.port):
        pass
    with trio.fail_after(10):
        await node.ended.wait()
    assert len(node.cancelled) == 1


# WebSocket


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


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_another_kind_of_node_went_on_with_says_so(served, http, mesh, failing, words, stream):
    async def dies_first(request, emit):
        if not request.prior:
            await failing(BackendFailed("dead", code="worker_died"), after=2)(request, emit)
        for offset in range(2, len(words)):
            emit(Delta(offset, [offset + 100], words[offset]))
        emit(Done("stop", Usage(3, 4), Performance(1.0, 2.0, 0.0, 100.0, 1)))

    await mesh.node(dies_first)
    await mesh.node(dies_first)
    body = {"model": "m", "prompt": "hi", "stream": stream}
    reply = await http.post(f"{served.url}/v1/completions", json=body)
    assert reply.status_code == 200
    assert reply.headers.get("x-infermesh-resume") == (None if stream else "approximate")
    assert ('"resume":"approximate"' in reply.text) == stream


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
    monkeypatch.setattr(websocket, "MAX_REPLY_CHARACTERS", 50)
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
