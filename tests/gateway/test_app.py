import secrets
from contextlib import AsyncExitStack

import msgspec
import pytest
import trio

from gateway.admission import AdmissionLimits
from gateway.app import Gateway
from mesh.errors import BackendFailed, BadRequest
from mesh.http import serve
from mesh.messages.inference import Delta, Done, Performance, Usage
from mesh.messages.link import ModelLoad
from tests.gateway.served import begin_stream, endless


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
