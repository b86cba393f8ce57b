import pytest

from mesh.errors import Misconfigured
from node.backends.build import build_backends
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
