import pytest

from mesh.config import load
from mesh.errors import Misconfigured
from node.config import NodeConfig


def read(*argv: str, **environ: str) -> NodeConfig:
    return load(NodeConfig, argv, environ, program="mesh-node", description="")


def test_the_defaults_serve_the_demo_model_on_loopback() -> None:
    config = read()
    assert (config.host, config.port, config.model, config.service_type) == ("127.0.0.1", 8100, {}, "torch")


def test_models_are_repeatable_pairs() -> None:
    assert read("--model", "a=/x", "--model", "b=/y=z").model == {"a": "/x", "b": "/y=z"}


def test_a_file_is_beaten_by_the_environment_and_that_by_a_flag(tmp_path) -> None:
    file = tmp_path / "node.toml"
    file.write_text('port = 1\nslots = 2\ndevice = "cpu"\n[model]\nmine = "/x"\n')
    config = read("--config-file", str(file), "--port", "3", INFERMESH_PORT="2", INFERMESH_SLOTS="5")
    assert (config.port, config.slots, config.device, config.model) == (3, 5, "cpu", {"mine": "/x"})


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (["--service-type", "magic"], "'magic' is not a service type; give torch, mock, command, vllm"),
        (["--registry-url", "gateway:8000"], "it looks like http://192.0.2.1:8000"),
        (["--device", "tpu"], "cuda:N"),
        (["--dtype", "int4"], "bfloat16"),
        (["--port", "65535"], "65534"),
        (["--slots", "0"], "at least 1"),
        (["--model", "nameless"], "KEY=VALUE"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_valid(argv: list[str], part: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        read(*argv)
    assert part in caught.value.message


@pytest.mark.parametrize("name", ["mock", "Mock", "TORCH"])
def test_the_service_type_is_read_in_any_case(name: str) -> None:
    config = read("--service-type", name)
    assert (config.backend[0].type, config.service_type) == (name, name.lower())
