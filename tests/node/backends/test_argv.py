"""The worked examples of the older babysitter, and what stands around them."""

import os
from pathlib import Path

import pytest

from mesh.config import load
from mesh.errors import Misconfigured
from node.backends.argv import child_argv, child_environment
from node.backends.plan import plan
from node.backends.unit import Unit
from node.config import NodeConfig

VLLM = ["python3", "-m", "vllm.entrypoints.openai.api_server"]


def units(folder: Path, text: str, *flags: str, environ: dict[str, str] | None = None) -> list[Unit]:
    file = folder / "node.toml"
    file.write_text(text)
    argv = ["--config-file", str(file), *flags]
    return list(plan(load(NodeConfig, argv, environ or {}, program="mesh-node", description="")))


def only(*args, **more) -> Unit:
    (unit,) = units(*args, **more)
    return unit


def argv_of(unit: Unit) -> list[str]:
    return child_argv(unit.settings, host=unit.host, port=unit.port)


def flagged(*flags: str) -> Unit:
    (unit,) = plan(load(NodeConfig, flags, {}, program="mesh-node", description=""))
    return unit


OLD_VLLM = """
name = "vllm-service-1"
port = 8100
registry_url = "http://localhost:18000"

[babysitter]
max_restarts = 10000
restart_delay = 5
heartbeat_interval = 30

[backend]
type = "vllm"
model = "/models/llama-2-70b"
args = ["--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.9"]
env = { CUDA_VISIBLE_DEVICES = "0,1", VLLM_WORKER_MULTIPROC_METHOD = "spawn" }
"""


def test_vllm_on_two_gpus(tmp_path):
    unit = only(tmp_path, OLD_VLLM)
    assert argv_of(unit) == [
        *VLLM,
        *("--model", "/models/llama-2-70b", "--port", "8100", "--host", "127.0.0.1"),
        *("--tensor-parallel-size", "2", "--gpu-memory-utilization", "0.9"),
    ]
    assert child_environment(unit.settings) == {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": "0,1",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    }
    assert (unit.restarts.limit, unit.restarts.delay) == (10_000, 5)


def test_llama_cpp_as_a_command(tmp_path):
    text = """
    port = 8102
    [backend]
    type = "command"
    command = "llama-server"
    args = ["--model", "/models/llama 2.gguf", "--port", "8102", "--n-gpu-layers", "35"]
    """
    assert argv_of(only(tmp_path, text)) == [
        *("llama-server", "--model", "/models/llama 2.gguf", "--port", "8102", "--n-gpu-layers", "35")
    ]


def test_a_python_backend_of_ones_own(tmp_path):
    text = """
    [backend]
    type = "command"
    command = "python3"
    args = ["my_backend.py", "--port", "{port}", "--options", '{"a": [1, 2]}']
    work_dir = "/srv/mine"
    env = { PYTHONPATH = "/srv/mine:/srv/lib" }
    """
    unit = only(tmp_path, text)
    assert argv_of(unit) == ["python3", "my_backend.py", "--port", "8100", "--options", '{"a": [1, 2]}']
    assert child_environment(unit.settings)["PYTHONPATH"] == "/srv/mine:/srv/lib"
    assert unit.settings.work_dir == Path("/srv/mine")


def test_a_command_by_flags():
    unit = flagged(
        *("--service-type", "command", "--command", "python3 -m vllm.entrypoints.openai.api_server"),
        *("--args", "--model '/models/with space' --port 8100"),
    )
    assert argv_of(unit) == [*VLLM, "--model", "/models/with space", "--port", "8100"]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            ["--service-type", "vLLM", "--path", "/models/x", "--port", "8200"],
            [*VLLM, "--model", "/models/x", "--port", "8200", "--host", "127.0.0.1"],
        ),
        (["--service-type", "InfiniLM-Rust", "--path", "/c.toml"], ["xtask", "service", "/c.toml", "-p", "8100"]),
        (
            ["--service-type", "InfiniLM", "--path", "/m", "--args", "--ndev 4"],
            ["python3", "launch_server.py", "--model-path", "/m", "--port", "8100", "--host", "127.0.0.1", "--ndev", "4"],
        ),
        (
            ["--service-type", "llama-cpp", "--path", "/m.gguf", "--command", "/opt/llama-server"],
            ["/opt/llama-server", "--model", "/m.gguf", "--port", "8100", "--host", "127.0.0.1"],
        ),
        (
            ["--service-type", "SGLang", "--backend-model", "q"],
            ["python3", "-m", "sglang.launch_server", "--model-path", "q", "--port", "8100", "--host", "127.0.0.1"],
        ),
    ],
    ids=["vllm", "infinilm-rust", "infinilm", "llama-cpp", "sglang"],
)
def test_each_types_program(flags, expected):
    assert argv_of(flagged(*flags)) == expected


def test_old_names_of_the_models_path(tmp_path):
    assert argv_of(only(tmp_path, '[backend]\ntype = "infinilm-rust"\nconfig_file = "/c.toml"\n'))[2] == "/c.toml"
    assert argv_of(only(tmp_path, '[backend]\ntype = "infinilm"\nmodel_path = "/m"\n'))[3] == "/m"


def test_flags_and_variables_beat_the_file_key_by_key(tmp_path):
    flags = ["--port", "8300", "--args", "--dtype half"]
    environ = {"INFERMESH_BACKEND_MODEL": "/other", "INFERMESH_ARGS": "--never seen", "INFERMESH_BACKEND_ENV": "A=1"}
    unit = only(tmp_path, OLD_VLLM, *flags, environ=environ)
    assert argv_of(unit) == [*VLLM, "--model", "/other", "--port", "8300", "--host", "127.0.0.1", "--dtype", "half"]
    assert unit.settings.env == {"A": "1"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[backend]\ntype = "command"\n', "line 1, backend.command: the type command needs a command"),
        ('[backend]\ntype = "vllm"\n', "backend.model: the type vllm needs model"),
        ('[backend]\ntype = "infinilm"\n', "backend.path: the type infinilm needs path"),
        ('[backend]\ntype = "vllm"\nmodel = "a"\npath = "b"\n', "model and path both name the model"),
        ('[backend]\ntype = "command"\ncommand = "x"\nargs = "--port 9000"\n', "--port 9000 is not P, which is 8100"),
        ('[backend]\ntype = "command"\ncommand = "x"\nargs = ["--port=9000"]\n', "--port 9000 is not P"),
        ('[backend]\ntype = "command"\ncommand = "x \'y"\n', "close every quote"),
    ],
)
def test_what_gives_no_command_line_is_said_where_it_stands(tmp_path, text, said):
    with pytest.raises(Misconfigured) as caught:
        argv_of(only(tmp_path, text))
    assert said in caught.value.message
    assert "node.toml" in caught.value.message
