from pathlib import Path

import pytest

from mesh.errors import Misconfigured
from node.backends.build import build, build_backends, build_found
from node.backends.mock import MockBackend
from node.backends.settings import BackendSettings
from node.backends.torch import TorchBackend
from node.config import NodeConfig
from node.models import DEMO_MODEL_ID, demo_model_path


def one(more: dict | None = None, **settings) -> NodeConfig:
    return NodeConfig(backend=[BackendSettings(**settings)], **(more or {}))


def test_nothing_asked_for_is_the_demo_model() -> None:
    (backend,) = build_backends(NodeConfig())
    assert isinstance(backend, TorchBackend)
    assert backend.entry.id == DEMO_MODEL_ID
    assert backend.entry.state == "loading"


def test_one_backend_for_each_model() -> None:
    models = build_backends(NodeConfig(model={"a": str(demo_model_path()), "b": str(demo_model_path())}))
    assert [backend.entry.id for backend in models] == ["a", "b"]
    (by_path,) = build_backends(one(path=str(demo_model_path())))
    assert by_path.entry.id == demo_model_path().name


def test_what_is_found_is_one_more_backend_with_a_name_of_its_own() -> None:
    config = one(type="mock", args="a", id="found")
    built = build_found(config, build(config))
    (backend,) = built.backends
    assert (built.unit.id, built.answers_itself, backend.expected) == ("found-1", False, False)
    assert build_found(NodeConfig(), build(NodeConfig())).unit.id == "found"


def test_mock_models_are_named_by_args() -> None:
    backends = build_backends(one(type="Mock", args="a,b;slots=2"))
    assert all(isinstance(backend, MockBackend) for backend in backends)
    assert [(backend.entry.id, backend.load.slots) for backend in backends] == [("a", 2), ("b", 2)]


@pytest.mark.parametrize(
    ("config", "part"),
    [
        (NodeConfig(model={"a": "/nowhere"}), "/nowhere does not exist"),
        (one(path="/nowhere"), "/nowhere does not exist"),
        (one(args="a,b"), "no use for args"),
        (one(type="mock"), "--args"),
        (one(type="mock", args="a;speed=1"), "tokens_per_second"),
        (one({"model": {"a": "/x"}}, type="mock", args="a"), "--model"),
        (NodeConfig(host="0.0.0.0"), "--insecure"),
        (NodeConfig(host="example.com"), "--insecure"),
        (one({"model": {DEMO_MODEL_ID: str(demo_model_path())}}, path=str(demo_model_path())), "leave one of them out"),
    ],
)
def test_what_cannot_work_is_refused(config: NodeConfig, part: str) -> None:
    with pytest.raises(Misconfigured) as caught:
        build_backends(config)
    assert part in caught.value.message


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_loopback_needs_no_permission(host: str) -> None:
    assert build_backends(one({"host": host}, type="mock", args="a"))


def test_an_open_port_can_be_asked_for() -> None:
    assert build_backends(one({"host": "0.0.0.0", "insecure": True}, type="mock", args="a"))


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"type": "openai", "url": "127.0.0.1:11434"}, "--backend-url: '127.0.0.1:11434' is not a server's address"),
        ({"type": "openai", "url": "http://me:secret@host"}, "is not a server's address"),
        ({"type": "anthropic"}, "--backend-models: the type anthropic needs models"),
        ({"type": "cli", "command": "cat"}, "--backend-models: the type cli needs models"),
        ({"type": "command"}, "--command: the type command needs a command"),
        ({"type": "command", "command": "no-such-program-anywhere"}, "there is no program"),
        ({"type": "command", "command": "cat", "work_dir": Path("/nowhere")}, "there is no folder /nowhere"),
        ({"type": "torch", "models": ["x"]}, "--path: the type torch needs path"),
        ({"type": "mock", "models": ["x"], "knobs": {"speed": "1"}}, "'speed=1' is not a knob"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value.get("type")),
)
def test_a_backend_of_another_type_that_cannot_work_is_refused(settings, part) -> None:
    with pytest.raises(Misconfigured) as caught:
        build_backends(one(**settings))
    assert part in caught.value.message


def test_a_model_that_two_backends_have_is_refused_naming_both(tmp_path) -> None:
    other = tmp_path / demo_model_path().name
    other.symlink_to(demo_model_path())
    settings = [BackendSettings(path=str(demo_model_path())), BackendSettings(path=str(other))]
    with pytest.raises(Misconfigured, match=f"torch-2 and torch both have a model '{other.name}'.*another name in models"):
        build_backends(NodeConfig(backend=settings))
    named = [settings[0], BackendSettings(path=str(other), models=["other"])]
    assert [backend.entry.id for backend in build_backends(NodeConfig(backend=named))] == [other.name, "other"]


def test_a_child_has_its_port_before_it_starts_and_others_when_they_are_bound() -> None:
    (built,) = build(one({"port": 0}, type="command", command="cat", args=["{port}"]))
    assert built.answers_itself
    assert built.unit.port > 0
    (built,) = build(one({"port": 0}, type="mock", models=["a"]))
    assert (built.answers_itself, built.unit.port) == (False, 0)


def test_several_backends_of_all_kinds() -> None:
    settings = [
        BackendSettings(type="openai", url="http://127.0.0.1:9", models=["a"]),
        BackendSettings(type="anthropic", models=["b"]),
        BackendSettings(type="cli", command="cat", models=["c", "d"]),
        BackendSettings(type="mock", models=["e"], knobs={"slots": "3"}),
    ]
    backends = build_backends(NodeConfig(backend=settings))
    assert [entry.id for backend in backends for entry in backend.entries()] == ["a", "b", "c", "d", "e"]
    assert backends[-1].load.slots == 3


def test_keys_open_the_host_for_what_the_node_serves_itself(tmp_path) -> None:
    opened = {"host": "0.0.0.0", "api_keys": tmp_path / "keys.toml"}
    assert build_backends(one(opened, type="mock", models=["a"]))
    with pytest.raises(Misconfigured, match="does not reach it"):
        build_backends(one(opened, type="command", command="cat"))
