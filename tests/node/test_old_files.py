"""Files of older multiplexers and babysitters, as people have them: `mesh-node --config-file FILE` takes each as it is."""

from pathlib import Path

import pytest

from mesh.config import load
from node.backends.argv import child_argv, child_environment
from node.backends.build import build_backends
from node.backends.plan import plan
from node.config import NodeConfig
from node.multiplexer.arguments import with_multiplexer_file

VLLM = "python3 -m vllm.entrypoints.openai.api_server --model /models/llama-2-70b"
FILES = Path(__file__).parent / "old_files"


def read(name: str) -> NodeConfig:
    argv, environ = with_multiplexer_file(["--config-file", str(FILES / name)], {})
    return load(NodeConfig, argv, environ, program="mesh-node", description="")


def test_every_file_is_tried_below() -> None:
    tried = {"podman.yaml", "vllm.yml", "policies.json", "multiplexer.conf"}
    tried |= {"vllm.toml", "llama.toml", "python.toml", "mock.toml", "infinilm.toml"}
    assert {path.name for path in FILES.iterdir()} == tried


@pytest.mark.parametrize(
    ("name", "port", "models", "policy"),
    [
        ("podman.yaml", 3000, {"facebook/opt-125m": 8001, "Qwen/Qwen2.5-3B-Instruct": 8002}, {}),
        (
            "vllm.yml",
            3000,
            {"large": 8001, "small": 8002},
            {"request_timeout_secs": 60, "drain_before_switch": False, "min_active_secs": 10},
        ),
        (
            "policies.json",
            3500,
            {"a": 8001, "b": 8002},
            {
                "policy_type": "cost_aware",
                "coalesce_window_ms": 1000,
                "amortization_factor": 0.25,
                "max_wait_secs": 30,
                "request_timeout_secs": None,
            },
        ),
        (
            "multiplexer.conf",
            3000,
            {"only": 9001},
            {"policy_type": "time_slice", "tick_interval_ms": 250, "min_quantum_ms": 4000},
        ),
    ],
)
async def test_multiplexer_files(name: str, port: int, models: dict[str, int], policy: dict[str, object]) -> None:
    config = read(name)
    assert config.port == port
    backends = build_backends(config)
    (multiplexer,) = {backend.multiplexer for backend in backends}
    assert {model: member.backend._settings.port for model, member in multiplexer.members.items()} == models
    expected = {"policy_type": "fifo", "drain_before_switch": True, "min_active_secs": 0, "request_timeout_secs": None} | policy
    assert {key: getattr(multiplexer.settings, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "argv", "environment"),
    [
        (
            "vllm.toml",
            f"{VLLM} --port 8100 --host 127.0.0.1 --tensor-parallel-size 2 --gpu-memory-utilization 0.9",
            {"CUDA_VISIBLE_DEVICES": "0,1", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"},
        ),
        ("llama.toml", "llama-server --model /models/llama-2-7b.gguf --port 8102 --n-gpu-layers 35", {}),
        (
            "python.toml",
            "python3 my_server.py --port 8104",
            {"PYTHONPATH": "/srv/my_server/lib", "MODEL_DIR": "/models/mine"},
        ),
        ("infinilm.toml", "xtask service /srv/infinilm/config.toml -p 8108", {}),
    ],
)
def test_babysitter_files(name: str, argv: str, environment: dict[str, str]) -> None:
    (unit,) = plan(read(name))
    assert child_argv(unit.settings, host=unit.host, port=unit.port) == argv.split()
    assert child_environment(unit.settings).items() >= environment.items()


def test_a_babysitter_file_of_mocks_and_its_restarts() -> None:
    config = read("mock.toml")
    assert (config.name, config.registry_url, config.heartbeat_interval) == ("mock-service", "http://localhost:18000", 10)
    (unit,) = plan(config)
    assert (unit.port, unit.restarts.limit, unit.restarts.delay) == (8106, 3, 1)
    assert [backend.entry.id for backend in build_backends(config)] == ["gpt-test", "llama-test"]
