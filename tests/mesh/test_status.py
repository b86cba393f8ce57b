import pytest

from mesh.messages.record import Capabilities, ModelEntry
from mesh.status import BACKEND_TYPES, Counted, backend_type, capabilities, metrics, report, task_names


@pytest.mark.parametrize(
    ("engine", "expected"),
    [
        ("torch", "GPU"),
        ("command", "GPU"),
        ("vLLM", "GPU"),
        ("sglang", "GPU"),
        ("llama-cpp", "GPU"),
        ("InfiniLM", "GPU"),
        ("InfiniLM-Rust", "GPU"),
        ("openai", "API"),
        ("anthropic", "API"),
        ("cli", "CLI"),
        ("something-new", "API"),
    ],
)
def test_every_engine_has_a_type(engine: str, expected: str) -> None:
    assert backend_type(engine) == expected
    assert expected in BACKEND_TYPES


def test_tasks_go_by_the_names_that_clients_use() -> None:
    assert task_names(["completion", "chat", "embedding", "rerank"]) == ["rerank", "text-embedding", "text-generation"]


def test_metrics_have_the_agreed_names_and_no_made_up_numbers() -> None:
    fresh = metrics(Counted())
    assert fresh == {
        "requests": 0,
        "successful": 0,
        "failed": 0,
        "success_rate": None,
        "avg_latency_ms": None,
        "queue_size": 0,
        "current_queue_size": 0,
        "active_connections": 0,
        "models_loaded": 0,
        "uptime": None,
    }
    used = metrics(Counted(requests=5, successful=3, failed=1, latency=0.6, queue=2, active=1))
    assert (used["success_rate"], used["avg_latency_ms"], used["current_queue_size"], used["active_connections"]) == (
        0.75,
        200,
        2,
        1,
    )


def test_the_report_counts_its_backends() -> None:
    backends = [
        {"id": "a", "type": "GPU", "status": "healthy", "tasks": ["x", "y"]},
        {"id": "b", "type": "GPU", "status": "offline", "tasks": ["x"]},
        {"id": "c", "type": "API", "status": "healthy", "tasks": []},
    ]
    found = report(backends, requests=3, successful=2, failed=1)
    assert found.pop("timestamp").endswith("Z")
    assert found == {
        "total_backends": 3,
        "backends_by_type": {"GPU": 2, "API": 1},
        "backends_by_status": {"healthy": 2, "offline": 1},
        "total_requests": 3,
        "total_successful": 2,
        "total_failed": 1,
        "supported_tasks": ["x", "y"],
        "backends": backends,
    }


def test_what_a_model_can_do_is_told_and_what_nobody_knows_is_null() -> None:
    can = Capabilities(tasks=["chat"], batching=False, hardware_types=["cuda"], protocols=["infermesh"], max_batch=16)
    assert capabilities(ModelEntry(id="m", state="ready", context_length=4096, capabilities=can)) == {
        "id": "m",
        "state": "ready",
        "tasks": ["text-generation"],
        "streaming": True,
        "batching": False,
        "max_batch": 16,
        "context_length": 4096,
        "hardware_types": ["cuda"],
        "protocols": ["infermesh"],
    }
    unknown = capabilities(ModelEntry(id="m"))
    assert (unknown["tasks"], unknown["max_batch"], unknown["context_length"]) == (["text-generation"], None, None)
