import pytest

from mesh.config import load
from mesh.errors import Misconfigured
from node.backends.build import build
from node.config import NodeConfig
from node.multiplexer.presented import Presented

MUX = '{"models": {"m": {"port": 8001, "wake": "w", "sleep": "s", "alive": "a"}}}'


def configured(*argv):
    return load(NodeConfig, list(argv), {}, program="mesh-node", description="")


async def test_all_models_of_a_node_share_one_multiplexer() -> None:
    (built,) = build(configured("--service-type", "mock", "--args", "a,b", "--switch-policy", "cost_aware"))
    assert [backend.entry.id for backend in built.backends] == ["a", "b"]
    assert all(isinstance(backend, Presented) for backend in built.backends)
    assert len({backend.multiplexer for backend in built.backends}) == 1
    assert not built.answers_itself


async def test_a_file_of_hooks_is_one_backend_that_the_node_answers_for(tmp_path) -> None:
    path = tmp_path / "mux.json"
    path.write_text(MUX)
    (built,) = build(configured("--multiplexer-file", str(path)))
    assert [backend.entry.id for backend in built.backends] == ["m"]
    assert built.unit.settings.kind == "hooks"
    assert not built.answers_itself
    with pytest.raises(Misconfigured, match="names all models of its node"):
        build(configured("--multiplexer-file", str(path), "--model", "x=/tmp"))


def test_what_cannot_sleep_and_policies_that_are_not_there_are_refused() -> None:
    with pytest.raises(Misconfigured, match="unknown switch policy 'lifo'"):
        build(configured("--service-type", "mock", "--args", "a,b", "--switch-policy", "lifo"))
    remote = ("--service-type", "openai", "--backend-url", "http://127.0.0.1:9", "--backend-models", "a")
    with pytest.raises(Misconfigured, match="cannot be put to sleep"):
        build(configured(*remote, "--switch-policy", "fifo"))
