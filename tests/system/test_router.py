"""The eight integration checks of the older router (contract R46), on real processes."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@pytest.fixture
async def mesh(fleet: Any, http: Any, until: Any) -> Any:
    """A gateway and two nodes: one serves model-a and model-shared, the other model-b and model-shared."""
    gateway = await fleet.gateway("--no-mdns", "--strategy", "round_robin")
    gateway.nodes = [
        await fleet.mock(models, "--no-mdns", "--bootstrap", gateway.address)
        for models in ("model-a,model-shared", "model-b,model-shared")
    ]

    async def complete() -> bool:
        return len((await http.get(f"{gateway.url}/v1/models")).json()["data"]) == 3

    await until(complete)
    return gateway


async def test_babysitter_health(mesh: Any, http: Any) -> None:
    for node in mesh.nodes:
        answer = await http.get(f"{node.url}/health")
        assert answer.status_code == 200
        assert answer.json()["status"] == "healthy"
        assert answer.json()["babysitter"] == "enhanced"
        assert answer.json()["backend_running"] is True


async def test_model_aggregation(mesh: Any, http: Any) -> None:
    for path in ("/models", "/v1/models"):
        data = (await http.get(mesh.url + path)).json()["data"]
        assert [model["id"] for model in data] == ["model-a", "model-b", "model-shared"]


@pytest.mark.parametrize(("model", "index"), [("model-a", 0), ("model-b", 1)])
async def test_routing_by_model(mesh: Any, http: Any, chat: Any, model: str, index: int) -> None:
    for _ in range(3):
        answer = await http.post(f"{mesh.url}/v1/chat/completions", json=chat(model))
        assert answer.status_code == 200
        assert answer.headers["x-infermesh-node"] == mesh.nodes[index].ready["peer_id"]


async def test_shared_model_is_balanced(mesh: Any, http: Any, chat: Any) -> None:
    served = Counter()
    for _ in range(10):
        answer = await http.post(f"{mesh.url}/v1/chat/completions", json=chat("model-shared"))
        served[answer.headers["x-infermesh-node"]] += 1
        await http.post(f"{mesh.url}/v1/chat/completions", json=chat("model-a"))  # must not advance the other model's turn
    assert sorted(served.values()) == [5, 5]


async def test_unsupported_model(mesh: Any, http: Any, chat: Any) -> None:
    answer = await http.post(f"{mesh.url}/v1/chat/completions", json=chat("model-x"))
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "model_not_found"
    assert "model-a" in answer.json()["error"]["message"]


async def test_streaming(mesh: Any, http: Any, chat: Any) -> None:
    lines = []
    async with http.stream("POST", f"{mesh.url}/v1/chat/completions", json=chat("model-shared", stream=True)) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in answer.aiter_lines() if line]
    assert all(line.startswith(("data: ", "id: ")) for line in lines)
    assert lines[-1] == "data: [DONE]"
    assert len(lines) > 3


async def test_services(mesh: Any, http: Any) -> None:
    body = (await http.get(f"{mesh.url}/services")).json()
    assert body["total"] == len(body["services"]) == 4
    by_type = Counter(service["metadata"].get("type") for service in body["services"])
    assert by_type["openai-api"] == 2
    for service in body["services"]:
        assert service["is_healthy"] is True
        assert service["name"]
    backends = [service for service in body["services"] if service["metadata"].get("type") == "openai-api"]
    assert {tuple(service["metadata"]["models"]) for service in backends} == {
        ("model-a", "model-shared"),
        ("model-b", "model-shared"),
    }
