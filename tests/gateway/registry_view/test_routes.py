"""The nine endpoints over a real port, with a real foreign server behind them."""

from functools import partial

import httpx2
import pytest
import trio

from gateway.app import Gateway
from gateway.dispatch import DispatchLimits
from gateway.registry_view.announce import keep_announcing
from gateway.registry_view.foreign import ForeignServices
from mesh.errors import BackendFailed, MeshError
from mesh.http import Request, serve
from mesh.loopback import Loopback
from mesh.openai.remote.client import VIA

CHAT = {"model": "far-model", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def gateway(mesh, nursery):
    """A gateway with the registry's face, whose foreign services are announced by its own peer."""
    foreign = ForeignServices(via=mesh.gateway.peer_id)
    built = Gateway(mesh.gateway.registry, foreign=foreign, limits=DispatchLimits(queue_wait=0.2))
    await nursery.start(foreign.run)
    nursery.start_soon(keep_announcing, foreign, Loopback(mesh.gateway, foreign))
    return built


@pytest.fixture
async def http(gateway, nursery):
    port = await nursery.start(partial(serve, gateway.router, "127.0.0.1", 0))
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client:
        yield client


@pytest.fixture
def registered(http, mesh, eventually):
    """Register a foreign server and wait until its models are known."""

    async def register(server, name: str = "far", **more):
        answer = await http.post("/services", json=server.body(name, **more))
        assert answer.status_code == 201, answer.text

        async def healthy() -> bool:
            return (await http.get(f"/services/{name}")).json()["is_healthy"]

        await eventually(healthy)
        if more.get("metadata", {}).get("babysitter") != "enhanced":
            await mesh.until(lambda: mesh.gateway.registry.nodes(server.models[0]))
        return answer.json()

    return register


async def test_registering_answers_201_with_the_service(http, server):
    far = await server()
    body = {**far.body(), "status": "running", "metadata": {"note": 1}}
    answer = await http.post("/services", json=body)
    assert answer.status_code == 201
    service = answer.json()["service"]
    assert set(service) == {
        *("name", "host", "port", "hostname", "url", "status", "timestamp", "last_heartbeat"),
        *("health_status", "is_healthy", "metadata"),
    }
    assert {key: service[key] for key in body} == body
    assert "far" in answer.json()["message"]


async def test_a_registered_service_is_listed_served_and_counted(http, server, registered, mesh, texts, done):
    far = await server()
    await registered(far, metadata={"weight": 3})
    node = await mesh.node()
    listed = (await http.get("/services")).json()
    assert listed["total"] == len(listed["services"]) == 3
    (shown,) = [service for service in listed["services"] if service["name"] == "far"]
    assert (shown["health_status"], shown["metadata"]["models"], shown["metadata"]["type"]) == (
        "healthy",
        ["far-model"],
        "openai-api",
    )
    assert [model["id"] for model in (await http.get("/v1/models")).json()["data"]] == ["far-model", "m"]
    reply = await http.post("/v1/chat/completions", json=CHAT)
    assert reply.json()["choices"][0]["message"]["content"] == "".join(texts)
    assert reply.json()["usage"]["prompt_tokens"] == done.usage.prompt_tokens
    assert reply.headers["x-infermesh-node"] == mesh.gateway.peer_id
    stats = (await http.get("/stats")).json()
    assert (stats["total_services"], stats["healthy_services"], stats["unhealthy_services"]) == (3, 3, 0)
    assert stats["status_distribution"] == {"running": 3}
    assert stats["host_distribution"]["127.0.0.1"] >= 1
    rows = {row["name"]: row for row in stats["services"]}
    assert sorted(rows) == ["far", f"{node.peer.settings.name}-server"]
    assert set(rows["far"]) == {
        *("name", "host", "port", "url", "babysitter_url", "healthy", "request_count", "error_count"),
        *("response_time", "weight", "models", "metadata"),
    }
    assert (rows["far"]["request_count"], rows["far"]["error_count"], rows["far"]["weight"]) == (1, 0, 3.0)
    assert rows["far"]["response_time"] > 0
    health = (await http.get("/health")).json()
    assert (health["registered_services"], health["healthy_services"], health["registry"]) == (3, 3, True)
    assert {"status": "healthy", "mode": "api_server", "router": True}.items() <= health.items()


async def test_streams_arrive_word_by_word_and_end_with_their_client(http, server, registered, texts):
    gate, never = trio.Event(), trio.Event()
    far = await server(gates={1: gate, 2: never})
    await registered(far)
    async with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as reply:
        with trio.move_on_after(10) as scope:
            async for line in reply.aiter_lines():
                if texts[0] in line:
                    gate.set()
                elif texts[1] in line:
                    scope.cancel()
    assert scope.cancelled_caught
    assert gate.is_set()
    with trio.fail_after(10):
        await far.cancelled.wait()


async def test_a_failing_service_is_an_error_object_and_a_lost_one_makes_its_model_unavailable(
    http, server, registered, eventually
):
    far = await server(error=BackendFailed("out of memory"))
    await registered(far)
    reply = await http.post("/v1/chat/completions", json=CHAT)
    assert (reply.status_code, reply.json()["error"]["code"]) == (502, "service_failed")
    await http.post("/services/far/heartbeat", json={"status": "stopped"})

    async def unavailable() -> bool:
        reply = await http.post("/v1/chat/completions", json=CHAT)
        return reply.status_code == 503 and "retry-after" in reply.headers

    await eventually(unavailable)


async def test_filters(http, server, registered, mesh):
    await registered(await server())
    dead = await server("dead-model")
    await http.post("/services", json=dead.body("down", status="stopped"))
    names = {
        query: [service["name"] for service in (await http.get(f"/services?{query}")).json()["services"]]
        for query in ("healthy=true", "healthy=false", "status=stopped", "status=running", "status=none")
    }
    assert names == {
        "healthy=true": ["far"],
        "healthy=false": ["down"],
        "status=stopped": ["down"],
        "status=running": ["far"],
        "status=none": [],
    }
    refused = await http.get("/services?healthy=maybe")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "healthy")


async def test_put_changes_delete_removes_and_404_tells_to_register(http, server, registered):
    await registered(await server())
    before = (await http.get("/services/far")).json()["last_heartbeat"]
    changed = await http.put("/services/far", json={"status": "degraded", "metadata": {"a": 1}})
    assert (changed.status_code, changed.json()["service"]["status"]) == (200, "degraded")
    shown = (await http.get("/services/far")).json()
    assert shown["metadata"]["a"] == 1
    assert shown["last_heartbeat"] > before
    beat = await http.post("/services/far/heartbeat")
    assert (beat.status_code, set(beat.json())) == (200, {"message", "timestamp"})
    gone = await http.delete("/services/far")
    assert (gone.status_code, set(gone.json())) == (200, {"message"})
    for method, path in [("GET", ""), ("PUT", ""), ("DELETE", ""), ("GET", "/health"), ("POST", "/heartbeat")]:
        answer = await http.request(method, f"/services/far{path}", content=b"{}")
        assert answer.status_code == 404, (method, path)
        assert answer.json()["error"]["code"] == "service_not_found"


async def test_registering_again_replaces(http, server, registered):
    one, two = await server("one"), await server("two")
    await registered(one)
    await registered(two)
    assert (await http.get("/services")).json()["total"] == 1
    assert (await http.get("/services/far")).json()["port"] == two.port


async def test_the_probe_looks_now_and_its_result_counts(http, server, registered):
    far = await server()
    await registered(far, metadata={"babysitter": "enhanced", "type": "vllm"})
    assert (await http.get("/services/far/health")).json()["is_healthy"] is True
    far.supervisor_status = 503
    probe = (await http.get("/services/far/health")).json()
    assert set(probe) == {"service", "health_status", "is_healthy", "last_heartbeat", "timestamp"}
    assert (probe["service"], probe["health_status"], probe["is_healthy"]) == ("far", "unhealthy", False)
    assert (await http.get("/services/far")).json()["is_healthy"] is False


async def test_a_node_of_the_mesh_speaks_for_itself(http, server, mesh):
    node = await mesh.node()
    far = await server()
    for name in (node.peer.settings.name, f"{node.peer.settings.name}-server"):
        assert (await http.get(f"/services/{name}")).status_code == 200
        assert (await http.get(f"/services/{name}/health")).json()["is_healthy"] is True
        answers = [
            await http.post("/services", json=far.body(name)),
            await http.put(f"/services/{name}", json={"status": "x"}),
            await http.delete(f"/services/{name}"),
            await http.post(f"/services/{name}/heartbeat"),
        ]
        assert [answer.status_code for answer in answers] == [409] * 4
        assert all(answer.json()["error"]["code"] == "mesh_service" for answer in answers)


async def test_a_foreign_service_keeps_its_name_when_a_node_comes_with_it(http, server, registered, mesh):
    await registered(await server(), "node-1")
    node = await mesh.node()
    assert node.peer.settings.name == "node-1"
    shown = f"node-1@{node.peer_id[-8:]}"
    names = [service["name"] for service in (await http.get("/services")).json()["services"]]
    assert names == ["node-1", shown, f"{shown}-server"]
    assert (await http.post("/services/node-1/heartbeat")).status_code == 200
    assert (await http.post(f"/services/{shown}/heartbeat")).status_code == 409


async def test_a_bad_body_is_400_and_names_the_field(http, server):
    far = await server()
    answer = await http.post("/services", json={**far.body(), "port": 70000})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "port")
    answer = await http.post("/services", content=b"nonsense")
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "invalid_json")


async def test_web_pages_of_elsewhere_may_not_write(http, server):
    far = await server()
    answer = await http.post("/services", json=far.body(), headers={"origin": "https://evil.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "origin_not_allowed")
    assert (await http.post("/services", json=far.body(), headers={"origin": "http://localhost:3000"})).status_code == 201


@pytest.mark.parametrize(
    ("client", "headers", "status"),
    [
        ("127.0.0.1", {}, 404),
        ("::1", {}, 404),
        ("::ffff:127.0.0.1", {}, 404),
        ("192.168.1.9", {}, 403),
        ("", {}, 403),
        ("127.0.0.1", {"x-forwarded-for": "8.8.8.8"}, 403),
    ],
)
@pytest.mark.parametrize(("method", "path"), [("PUT", ""), ("DELETE", ""), ("POST", "/heartbeat")])
async def test_only_programs_on_this_machine_write(gateway, client, headers, status, method, path):
    request = Request(method, f"/services/far{path}", headers=headers, client=client, body=b"{}")
    with pytest.raises(MeshError) as caught:
        await gateway.router.answer(request)
    assert caught.value.status == status


async def test_a_gateway_registered_in_its_own_mesh_is_found_out(http, mesh):
    port = http.base_url.port
    answer = await http.post("/services", json={"name": "myself", "host": "127.0.0.1", "port": port})
    assert answer.status_code == 201
    assert (await http.get("/services/myself/health")).json()["is_healthy"] is False
    refused = await http.get("/v1/models", headers={VIA: mesh.gateway.peer_id})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "same_mesh")
    assert (await http.get("/v1/models", headers={VIA: "a stranger"})).status_code == 200


async def test_the_registry_port_has_the_nine_endpoints_and_nothing_else(gateway, nursery, server):
    port = await nursery.start(partial(serve, gateway.registry_router, "127.0.0.1", 0))
    far = await server()
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client:
        assert (await client.post("/services", json=far.body())).status_code == 201
        for path in ("/health", "/stats", "/services", "/services/far", "/services/far/health"):
            assert (await client.get(path)).status_code == 200, path
        assert (await client.post("/services/far/heartbeat")).status_code == 200
        assert (await client.put("/services/far", json={})).status_code == 200
        assert (await client.delete("/services/far")).status_code == 200
        assert (await client.get("/v1/models")).status_code == 404
