"""Both ports over real sockets, with real backends behind them."""

import json
import socket
import time

import httpx2
import pytest
import trio

from mesh.errors import Misconfigured
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry
from mesh.messages.worker import Alive, CacheStats, EngineStats, Ready
from node import http as node_http
from node.backends.base import Backend, BackendStatus, nobody_listens
from node.backends.mock import MockBackend, MockSettings
from node.http import Identification, Ports, free_pair, url_of
from node.service import NodeService

HANG_GUARD = 20
CHAT = {"model": "a", "messages": [{"role": "user", "content": "hello there"}], "max_tokens": 5}


class DownBackend(Backend):
    """A model in whatever state the test says."""

    def __init__(self, model: str, **status) -> None:
        self._status = BackendStatus(**{"state": "failed", "running": False, "last_error": "it broke", "restarts": 4, **status})
        self.entry = ModelEntry(id=model, state=self._status.state)
        self.load = ModelLoad(self._status.state)
        self.changed = nobody_listens

    async def run(self, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()

    async def infer(self, request, emit) -> None:
        raise AssertionError("nobody should ask")

    def status(self) -> BackendStatus:
        return self._status


@pytest.fixture
async def serve(nursery):
    """Start backends and both ports; gives the ports."""

    async def begin(*backends: Backend) -> Ports:
        for backend in backends:
            await nursery.start(backend.run)
        ports = Ports(NodeService(backends))
        await nursery.start(ports.run, "127.0.0.1", 0)
        ports.routes.me = Identification(name="n", host="127.0.0.1", port=ports.port, service_type="mock")
        return ports

    return begin


@pytest.fixture
async def client():
    async with httpx2.AsyncClient(timeout=HANG_GUARD, trust_env=False) as http:
        yield http


async def get(client, ports: Ports, path: str):
    return await client.get(f"{url_of('127.0.0.1', ports.port + 1)}{path}")


async def test_p_answers_openai_plain_and_streamed(serve, client) -> None:
    ports = await serve(MockBackend("a"))
    url = f"{url_of('127.0.0.1', ports.port)}/v1/chat/completions"
    plain = (await client.post(url, json=CHAT)).json()
    assert plain["usage"] == {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}
    assert len(plain["choices"][0]["message"]["content"].split()) == 5
    streamed = await client.post(url, json={**CHAT, "stream": True})
    chunks = [line[6:] for line in streamed.text.splitlines() if line.startswith("data: ")]
    assert chunks[-1] == "[DONE]"
    assert all(json.loads(chunk)["object"] == "chat.completion.chunk" for chunk in chunks[:-1])
    assert (await client.post(url, json={**CHAT, "model": "b"})).json()["error"]["code"] == "model_not_found"


async def test_health_has_the_agreed_shape(serve, client) -> None:
    ports = await serve(MockBackend("a"))
    answer = await get(client, ports, "/health")
    assert answer.status_code == 200
    body = answer.json()
    assert abs(body.pop("timestamp") - time.time()) < HANG_GUARD
    assert body == {
        "status": "healthy",
        "service": "n",
        "babysitter": "enhanced",
        "backend_running": True,
        "backend_port": ports.port,
        "infinilm_server_running": True,
        "infinilm_server_port": ports.port,
        "restart_count": 0,
        "last_error": None,
    }


@pytest.mark.parametrize(
    ("status", "level"),
    [
        ({"state": "failed"}, "unhealthy"),
        ({"state": "loading"}, "unhealthy"),
        ({"state": "loading", "last_error": None}, "initializing"),
    ],
)
async def test_health_is_503_while_nothing_works(serve, client, status, level: str) -> None:
    ports = await serve(DownBackend("a", **status))
    answer = await get(client, ports, "/health")
    assert answer.status_code == 503
    assert answer.json()["status"] == level
    assert answer.json()["backend_running"] is False
    assert answer.json()["last_error"] == status.get("last_error", "it broke")
    models = await get(client, ports, "/models")
    assert models.status_code == 503
    assert models.json()["error"]["code"] == "model_loading"


async def test_one_of_two_models_down_is_degraded(serve, client) -> None:
    ports = await serve(MockBackend("a"), DownBackend("b"))
    answer = await get(client, ports, "/health")
    assert (answer.status_code, answer.json()["status"], answer.json()["restart_count"]) == (200, "degraded", 4)
    models = (await get(client, ports, "/models")).json()
    assert [model["id"] for model in models["data"]] == ["a"]


async def test_an_asleep_model_counts_as_working(serve, client) -> None:
    ports = await serve(DownBackend("a", state="asleep", last_error=None))
    assert (await get(client, ports, "/health")).status_code == 200
    assert (await get(client, ports, "/models")).status_code == 200


async def test_info_has_the_agreed_shape(serve, client) -> None:
    ports = await serve(MockBackend("a"), DownBackend("b", pid=7))
    body = (await get(client, ports, "/info")).json()
    assert body.pop("uptime") >= 0
    described = body.pop("models")
    assert body == {
        "name": "n",
        "host": "127.0.0.1",
        "port": ports.port,
        "url": f"http://127.0.0.1:{ports.port}",
        "service_type": "mock",
        "infinilm_server_port": ports.port,
        "restart_count": 4,
        "pid": 7,
        "state": "ready",
    }
    assert [(model["id"], model["state"], model["last_error"]) for model in described] == [
        ("a", "ready", None),
        ("b", "failed", "it broke"),
    ]


async def test_status_has_the_agreed_shape_and_counts_what_was_asked(serve, client) -> None:
    ports = await serve(MockBackend("a", MockSettings(slots=5)), DownBackend("b"))
    url = url_of("127.0.0.1", ports.port)
    assert (await client.post(f"{url}/v1/chat/completions", json=CHAT)).status_code == 200
    assert (await client.post(f"{url}/v1/chat/completions", json={**CHAT, "model": "c"})).status_code == 404
    report = (await get(client, ports, "/status")).json()
    assert (report["total_backends"], report["backends_by_type"]) == (2, {"GPU": 1, "API": 1})
    assert report["backends_by_status"] == {"healthy": 1, "unhealthy": 1}
    assert (report["total_requests"], report["total_successful"], report["total_failed"]) == (1, 1, 0)
    assert report["supported_tasks"] == ["text-embedding", "text-generation"]
    first, second = report["backends"]
    assert (first["id"], first["type"], first["status"], first["endpoint"]) == ("a", "GPU", "healthy", url)
    assert (first["metrics"]["requests"], first["metrics"]["success_rate"], first["metrics"]["models_loaded"]) == (1, 1.0, 1)
    assert first["metrics"]["avg_latency_ms"] > 0
    assert first["metrics"]["uptime"] > 0
    assert (first["models"][0]["max_batch"], first["models"][0]["context_length"]) == (5, 8192)
    assert (second["status"], second["last_error"], second["restarts"]) == ("unhealthy", "it broke", 4)
    assert (second["metrics"]["requests"], second["metrics"]["uptime"]) == (0, None)


async def test_a_backend_whose_requests_fail_is_degraded(serve, client) -> None:
    ports = await serve(MockBackend("a", MockSettings(die_after_tokens=1)))
    for _ in range(3):
        answer = await client.post(f"{url_of('127.0.0.1', ports.port)}/v1/chat/completions", json=CHAT)
        assert answer.status_code == 502
    answer = await get(client, ports, "/health")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    metrics = (await get(client, ports, "/status")).json()["backends"][0]["metrics"]
    assert (metrics["failed"], metrics["success_rate"]) == (3, 0.0)


async def test_stopping_lets_p_finish_and_leaves_p_plus_1(serve, client) -> None:
    ports = await serve(MockBackend("a", MockSettings(first_token_ms=300)))
    answers = []

    async def ask() -> None:
        answers.append(await client.post(f"{url_of('127.0.0.1', ports.port)}/v1/chat/completions", json=CHAT))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.1)
        ports.stop()
    with trio.fail_after(HANG_GUARD):
        await ports.stopped.wait()
    assert answers[0].status_code == 200
    assert (await get(client, ports, "/health")).status_code == 200
    with pytest.raises(httpx2.ConnectError):
        await client.get(url_of("127.0.0.1", ports.port))


@pytest.mark.parametrize("taken", [0, 1])
async def test_a_taken_port_of_the_pair_is_named(taken: int) -> None:
    port = free_pair("127.0.0.1")
    ports = Ports(NodeService([MockBackend("a")]))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", port + taken))
        holder.listen()
        with pytest.raises(Misconfigured) as caught:
            await ports.run("127.0.0.1", port)
        assert str(port + taken) in caught.value.message
    with socket.socket() as again:
        again.bind(("127.0.0.1", port))


async def test_port_0_tries_the_next_pair_when_one_is_taken_meanwhile(monkeypatch, nursery) -> None:
    good = free_pair("127.0.0.1")
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        bad = holder.getsockname()[1] - 1
        pairs = iter([bad, good])
        monkeypatch.setattr(node_http, "free_pair", lambda host: next(pairs))
        ports = Ports(NodeService([MockBackend("a")]))
        assert await nursery.start(ports.run, "127.0.0.1", 0) == good


async def test_port_0_gives_up_after_some_pairs(monkeypatch) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        tried = []
        monkeypatch.setattr(node_http, "free_pair", lambda host: tried.append(1) or holder.getsockname()[1])
        with pytest.raises(Misconfigured):
            await Ports(NodeService([MockBackend("a")])).run("127.0.0.1", 0)
        assert len(tried) == node_http._ATTEMPTS


def test_a_pair_is_two_free_ports() -> None:
    port = free_pair("127.0.0.1")
    for number in (port, port + 1):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", number))


def test_a_host_of_another_machine_is_refused() -> None:
    for host in ("nowhere.invalid", "203.0.113.1"):
        with pytest.raises(Misconfigured, match=host):
            free_pair(host)


def test_urls_are_reachable_from_this_machine() -> None:
    assert url_of("127.0.0.1", 1) == "http://127.0.0.1:1"
    assert url_of("0.0.0.0", 1) == "http://127.0.0.1:1"
    assert url_of("::1", 1) == "http://[::1]:1"


async def test_info_tells_the_engines_counters_where_there_is_an_engine(serve, client) -> None:
    stats = EngineStats(total_requests=3, completed_requests=2, cache=CacheStats(hits=1, misses=3, hit_rate=0.25))
    alive = Alive(step=9, running=1, waiting=0, busy_seconds=0.5, stats=stats)
    ready = Ready(
        context_length=99, vocabulary=5, parameters=7, slots=4, device="cpu", device_name="a CPU", device_memory=1,
        dtype="float32", weights_digest="", numerics="", architecture="Llama", weights="int8", threads=3,
    )  # fmt: skip
    down = DownBackend("a", state="ready", running=True, engine=alive, heard=0.25, worker=ready)
    ports = await serve(down, MockBackend("b"))
    models = {model["id"]: model for model in (await get(client, ports, "/info")).json()["models"]}
    metrics = models["a"]["metrics"]
    sizes = {"evictable_size", "protected_size", "total_cached", "total_capacity"}
    assert set(metrics["cache"]) == {"hit_rate", "hits", "misses", "evictions", "node_count", *sizes}
    assert (metrics["cache"]["hit_rate"], metrics["engine"]["total_requests"], metrics["gpu"]) == (0.25, 3, None)
    assert metrics["pulse"] == {"step": 9, "busy_seconds": 0.5, "heard_seconds_ago": 0.25}
    assert models["a"]["worker"] == {
        "device": "cpu", "device_name": "a CPU", "dtype": "float32", "weights": "int8", "threads": 3, "slots": 4, "parameters": 7,
        "architecture": "Llama",
    }  # fmt: skip
    assert models["b"]["metrics"] is models["b"]["worker"] is None
