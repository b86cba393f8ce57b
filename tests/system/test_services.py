"""The registry's nine endpoints, called as an old client would, on real processes (contract R22 to R26)."""

from __future__ import annotations

import json
import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trio

from mesh.http import Router, serve
from mesh.messages.inference import Accepted, Delta, Done, Performance, Usage
from mesh.messages.record import ModelEntry
from mesh.openai.routes import OpenAIRoutes

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.messages.inference import Event, InferenceRequest

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "registry.sh"
TEXTS = ["from ", "far ", "away"]


class Far:
    """What answers behind a foreign OpenAI-compatible server."""

    def __init__(self) -> None:
        self.gate = trio.Event()
        self.gate.set()

    async def infer(self, request: InferenceRequest, emit: Callable[[Event], None]) -> None:
        emit(Accepted())
        emit(Delta(0, [0], TEXTS[0]))
        await self.gate.wait()
        for index, text in enumerate(TEXTS[1:], start=1):
            emit(Delta(index, [index], text))
        emit(Done("stop", Usage(4, 3), Performance(1, 2, 0, 3, 1)))


@pytest.fixture
async def far(nursery: trio.Nursery) -> Any:
    """A foreign server, and the body that registers it."""
    service = Far()
    router = Router()
    OpenAIRoutes(service, lambda: [ModelEntry(id="far-model", created=1)]).mount(router)
    port = await nursery.start(partial(serve, router, "127.0.0.1", 0))
    service.body = {"name": "far", "host": "127.0.0.1", "port": port, "hostname": "box", "status": "running"}
    service.body["url"] = f"http://127.0.0.1:{port}"
    return service


async def serves(http: Any, url: str, model: str) -> bool:
    return model in [one["id"] for one in (await http.get(f"{url}/v1/models")).json()["data"]]


async def text_of(http: Any, url: str, chat: Any) -> str:
    answer = await http.post(f"{url}/v1/chat/completions", json=chat("far-model"))
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["message"]["content"])


async def test_the_nine_endpoints_as_an_old_client_calls_them(fleet: Any, http: Any, until: Any, far: Any) -> None:
    gateway = await fleet.gateway("--no-mdns", "--registry-port", "0")
    found = await until(lambda: re.search(r"endpoints are at (http\S+)", gateway.log.read_text()))
    node = await fleet.mock("model-a", "--no-mdns", "--name", "X", "--bootstrap", gateway.address)
    await until(lambda: serves(http, gateway.url, "model-a"))
    for url in (gateway.url, found[1]):
        assert (await http.post(f"{url}/services", json=far.body)).status_code == 201
        service = (await http.get(f"{url}/services/far")).json()
        assert {key: service[key] for key in far.body} == far.body
        listed = (await http.get(f"{url}/services")).json()
        assert [one["name"] for one in listed["services"]] == ["X", "X-server", "far"]
        assert {one["port"] for one in listed["services"] if one["name"] == "X"} == {int(node.url.rpartition(":")[2])}
        assert (await http.put(f"{url}/services/far", json={"metadata": {"zone": 7}})).json()["service"]["metadata"]["zone"] == 7
        probe = (await http.get(f"{url}/services/far/health")).json()
        assert (probe["service"], probe["is_healthy"]) == ("far", True)
        assert (await http.post(f"{url}/services/far/heartbeat", json={"status": "running"})).status_code == 200
        assert (await http.get(f"{url}/services?healthy=true")).json()["total"] == 3
        stats = (await http.get(f"{url}/stats")).json()
        assert (stats["total_services"], stats["healthy_services"], stats["persistence"]) == (3, 3, "ok")
        health = (await http.get(f"{url}/health")).json()
        assert (health["status"], health["registered_services"], health["healthy_services"]) == ("healthy", 3, 3)
        for answer in (
            await http.post(f"{url}/services", json={**far.body, "name": "X"}),
            await http.put(f"{url}/services/X-server", json={"status": "stopped"}),
            await http.delete(f"{url}/services/X"),
            await http.post(f"{url}/services/X/heartbeat"),
        ):
            assert (answer.status_code, answer.json()["error"]["code"]) == (409, "mesh_service")
        assert (await http.delete(f"{url}/services/far")).status_code == 200
        assert (await http.get(f"{url}/services/far")).status_code == 404
    assert (await http.get(f"{found[1]}/v1/models")).status_code == 404


async def test_a_service_is_routable_through_every_gateway_and_survives_a_restart(
    fleet: Any, http: Any, until: Any, far: Any, chat: Any
) -> None:
    bootstrap = await fleet.start("bootstrap", "--no-mdns")
    first = await fleet.gateway("--no-mdns", "--bootstrap", bootstrap.address, "--state-dir", str(fleet.logs / "first"))
    second = await fleet.gateway("--no-mdns", "--bootstrap", bootstrap.address)
    assert (await http.post(f"{first.url}/services", json=far.body)).status_code == 201
    for gateway in (first, second):
        await until(lambda gateway=gateway: serves(http, gateway.url, "far-model"))
        assert await text_of(http, gateway.url, chat) == "".join(TEXTS)
    # The answer is under way when its gateway is told to stop: it still arrives, over the other gateway.
    far.gate = trio.Event()
    answers: list[str] = []

    async def ask() -> None:
        answers.append(await text_of(http, second.url, chat))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await until(lambda: _in_flight(http, first.url))
        nursery.start_soon(first.stop)
        await trio.sleep(0.3)
        far.gate.set()
    assert answers == ["".join(TEXTS)]
    again = await fleet.gateway("--no-mdns", "--bootstrap", bootstrap.address, "--state-dir", str(fleet.logs / "first"))
    assert again.ready["peer_id"] == first.ready["peer_id"]
    await until(lambda: serves(http, again.url, "far-model"))
    assert (await http.get(f"{again.url}/services/far")).json()["hostname"] == "box"
    await until(lambda: serves(http, second.url, "far-model"))
    assert await text_of(http, second.url, chat) == "".join(TEXTS)
    again.kill()
    last = await fleet.gateway("--no-mdns", "--bootstrap", bootstrap.address, "--state-dir", str(fleet.logs / "first"))
    assert (await http.get(f"{last.url}/services")).json()["total"] == 1


SERVICE = {
    "name", "host", "port", "hostname", "url", "status", "timestamp", "last_heartbeat", "health_status", "is_healthy", "metadata",
}  # fmt: skip


async def curl(url: str, *args: str) -> dict[str, Any]:
    """What `docs/examples/registry.sh` prints, and as `code` whether it was content."""
    with trio.fail_after(60):
        done = await trio.run_process(
            ["sh", str(SCRIPT), *args], capture_stdout=True, check=False, env={**os.environ, "GATEWAY": url}
        )
    answer: dict[str, Any] = json.loads(done.stdout)
    return {**answer, "exit": done.returncode}


async def test_the_nine_endpoints_by_curl_and_a_restart(fleet: Any, http: Any, until: Any, far: Any, chat: Any) -> None:
    state = ("--state-dir", str(fleet.logs / "kept"))
    gateway = await fleet.gateway("--no-mdns", *state)
    url, where = gateway.url, ("far", "127.0.0.1", str(far.body["port"]))
    health = await curl(url, "health")
    assert (health["exit"], health["status"], health["router"], health["total_services"]) == (0, "healthy", True, 0)
    made = await curl(url, "register", *where)
    assert (made["exit"], set(made), set(made["service"])) == (0, {"message", "service", "exit"}, SERVICE)
    got = await curl(url, "get", "far")
    assert (set(got) - {"exit"}, got["port"], got["status"]) == (SERVICE, far.body["port"], "running")
    changed = await curl(url, "change", "far", '{"metadata": {"type": "openai-api", "weight": 2}}')
    assert (set(changed), changed["service"]["metadata"]["weight"]) == ({"message", "service", "exit"}, 2)
    probed = await curl(url, "probe", "far")
    assert set(probed) == {"service", "health_status", "is_healthy", "last_heartbeat", "timestamp", "exit"}
    assert (probed["health_status"], probed["is_healthy"]) == ("healthy", True)
    beaten = await curl(url, "heartbeat", "far")
    assert (set(beaten), beaten["exit"]) == ({"message", "timestamp", "exit"}, 0)
    for query, total in (("", 1), ("?status=running&healthy=true", 1), ("?status=stopped", 0), ("?healthy=false", 0)):
        listed = await curl(url, "list", query)
        assert (set(listed), listed["total"], len(listed["services"])) == (
            {"services", "total", "timestamp", "exit"},
            total,
            total,
        )
    stats = await curl(url, "stats")
    assert (stats["total_services"], stats["status_distribution"], stats["services"][0]["weight"]) == (1, {"running": 1}, 2)
    assert await text_of(http, url, chat) == "".join(TEXTS)

    await gateway.stop()
    gateway = await fleet.gateway("--no-mdns", *state)
    again = await curl(gateway.url, "get", "far")
    assert {key: again[key] for key in ("name", "url", "hostname")} == {key: got[key] for key in ("name", "url", "hostname")}
    assert again["metadata"]["weight"] == 2
    await until(lambda: serves(http, gateway.url, "far-model"))
    assert await text_of(http, gateway.url, chat) == "".join(TEXTS)
    assert (await curl(gateway.url, "remove", "far"))["exit"] == 0
    for verb in ("get", "probe", "heartbeat", "remove"):
        gone = await curl(gateway.url, verb, "far")
        assert (gone["exit"], gone["error"]["code"]) == (22, "service_not_found")


async def test_a_service_that_keeps_itself_registered(fleet: Any, http: Any, until: Any, far: Any) -> None:
    gateway = await fleet.gateway("--no-mdns")
    command = ["sh", str(SCRIPT), "keep", "far", "127.0.0.1", str(far.body["port"])]
    fleet.spawn("service", command=command, env={"GATEWAY": gateway.url, "INTERVAL": "0.2"})
    await until(lambda: serves(http, gateway.url, "far-model"))
    assert (await http.delete(f"{gateway.url}/services/far")).status_code == 200

    async def back() -> bool:
        return bool((await http.get(f"{gateway.url}/services/far")).status_code == 200)

    await until(back)


async def _in_flight(http: Any, url: str) -> bool:
    backends = (await http.get(f"{url}/v1/mesh/peers")).json()["peers"]
    return any(model["running"] for peer in backends for model in peer["models"])


@pytest.mark.parametrize("port", ["taken", "same"])
async def test_a_registry_port_that_cannot_be_is_named(fleet: Any, port: str) -> None:
    listener = trio.socket.socket()
    await listener.bind(("127.0.0.1", 0))
    listener.listen()
    number = str(listener.getsockname()[1])
    ports = ["--port", "0", "--registry-port", number] if port == "taken" else ["--port", number, "--registry-port", number]
    program = fleet.spawn("gateway", "--no-mdns", *ports)
    assert await program.wait() == 2
    listener.close()
    assert (
        f"--registry-port {number}" in program.log.read_text() or f"--registry-port are both {number}" in program.log.read_text()
    )
