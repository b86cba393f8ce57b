"""GET /v1/metrics over real links in one process."""

from __future__ import annotations

import msgspec
import pytest

from gateway.app import Gateway
from gateway.metrics import MAX_CORES, together
from mesh.http import Request
from mesh.messages.metrics import CpuFigures, MemoryFigures, NodeMetrics
from mesh.messages.worker import CacheStats, EngineStats, GpuStats

BUSY = NodeMetrics(
    cpu=CpuFigures(utilization_percent=90.0, core_count=3, per_core_percent=[80.0, 90.0, 100.0]),
    memory=MemoryFigures(used_gb=6.0, total_gb=8.0, utilization_percent=75.0),
    engine=EngineStats(
        total_requests=5,
        completed_requests=4,
        avg_decode_time_ms=10.0,
        cache=CacheStats(hits=1, misses=1, total_capacity=100),
        gpu=GpuStats(utilization_percent=50.0, memory_used_gb=2.0, memory_total_gb=4.0, temperature_c=60.0),
    ),
)
IDLE = NodeMetrics(
    cpu=CpuFigures(utilization_percent=10.0, core_count=1, per_core_percent=[10.0]),
    memory=MemoryFigures(used_gb=1.0, total_gb=24.0, utilization_percent=5.0),
)


@pytest.fixture
async def ask(mesh):
    gateway = Gateway(mesh.gateway.registry, measuring=mesh.gateway.measuring)

    async def get():
        answer = await gateway.router.answer(Request(method="GET", path="/v1/metrics"))
        assert answer.status == 200
        return msgspec.json.decode(answer.body)

    return get


async def test_nodes_are_told_each_and_together(mesh, ask):
    busy = await mesh.node(measure=lambda: BUSY)
    idle = await mesh.node(measure=lambda: IDLE)
    old = await mesh.node()
    found = await ask()
    assert set(found) == {"cpu", "memory", "gpu", "engine", "cache", "nodes", "timestamp"}
    assert found["cpu"] == {"utilization_percent": 70.0, "core_count": 4}
    assert found["memory"] == {"used_gb": 7.0, "total_gb": 32.0, "utilization_percent": pytest.approx(22.5)}
    assert found["gpu"] == {"utilization_percent": 50.0, "memory_used_gb": 2.0, "memory_total_gb": 4.0, "temperature_c": 60.0}
    assert (found["engine"]["total_requests"], found["engine"]["avg_decode_time_ms"]) == (5, 10.0)
    assert (found["cache"]["hit_rate"], found["cache"]["total_capacity"]) == (0.5, 100)
    nodes = found["nodes"]
    assert set(nodes) == {busy.peer_id, idle.peer_id, old.peer_id}
    assert nodes[busy.peer_id]["cpu"]["per_core_percent"] == [80.0, 90.0, 100.0]
    assert nodes[busy.peer_id]["models"] == ["m"]
    assert (nodes[idle.peer_id]["engine"], nodes[idle.peer_id]["gpu"]) == (None, None)
    # One that is too old to tell.
    assert {nodes[old.peer_id][name] for name in ("cpu", "memory", "gpu", "engine", "cache")} == {None}


async def test_without_nodes_everything_is_zero(ask):
    found = await ask()
    assert (found["nodes"], found["gpu"], found["cpu"]["core_count"]) == ({}, None, 0)
    assert found["engine"]["total_requests"] == found["cache"]["hits"] == 0


async def test_what_a_node_says_is_bounded_before_it_counts():
    liar = msgspec.structs.replace(BUSY, cpu=CpuFigures(utilization_percent=float("nan"), core_count=-7))
    assert together([liar, IDLE]).cpu == CpuFigures(utilization_percent=10.0, core_count=1)


async def test_a_node_with_endless_cores_is_cut(mesh, ask):
    many = msgspec.structs.replace(BUSY, cpu=CpuFigures(core_count=1, per_core_percent=[1.0] * (MAX_CORES + 1)))
    node = await mesh.node(measure=lambda: many)
    assert len((await ask())["nodes"][node.peer_id]["cpu"]["per_core_percent"]) == MAX_CORES
