"""From the configuration to backends. What cannot work is refused here, before anything is started."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import TYPE_CHECKING

from mesh.errors import Misconfigured
from node.backends.adapter import AdapterBackend, adapters_by_base
from node.backends.mock import MockBackend, parse_mock
from node.backends.torch import TorchBackend, TorchSettings, require_worker_packages
from node.model_directory import check_model_directory
from node.models import DEMO_MODEL_ID, demo_model_path
from node.supervisor import RestartPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mesh.messages.worker import Loading
    from node.backends.base import Backend
    from node.config import NodeConfig


def build_backends(config: NodeConfig, *, on_loading: Callable[[str, Loading], None] | None = None) -> Sequence[Backend]:
    """The backends that the configuration asks for; none is running yet. Raises Misconfigured."""
    _check_host(config)
    if config.service_type.lower() == "mock":
        return _mocks(config)
    if config.args:
        raise Misconfigured("--args is for --service-type mock; leave it out, or add --service-type mock")
    models = _models(config)
    by_base = adapters_by_base(models)
    for model in by_base:
        check_model_directory(models[model])
    require_worker_packages()
    backends: list[Backend] = []
    for model, adapters in by_base.items():
        base = TorchBackend(_settings(config, model, models[model], adapters), on_loading=on_loading)
        backends += [base, *(AdapterBackend(name, base) for name in adapters)]
    return backends


def _mocks(config: NodeConfig) -> Sequence[Backend]:
    if config.model or config.path:
        raise Misconfigured(
            "--service-type mock has no use for --model and --path; name its models with --args 'model-a,model-b'"
        )
    try:
        models, settings = parse_mock(config.args)
    except ValueError as error:
        raise Misconfigured(f"--args: {error}; write it as --args 'model-a,model-b;tokens_per_second=50'") from error
    return [MockBackend(model, settings) for model in models]


def _models(config: NodeConfig) -> dict[str, Path]:
    models = {model: Path(path).expanduser() for model, path in config.model.items()}
    if config.path is not None:
        name = config.path.resolve().name
        if name in models:
            raise Misconfigured(f"--path and --model both name a model {name!r}; leave one of them out")
        models[name] = config.path
    return models or {DEMO_MODEL_ID: demo_model_path()}


def _settings(config: NodeConfig, model: str, path: Path, adapters: Mapping[str, Path]) -> TorchSettings:
    return TorchSettings(
        model=model,
        path=path.resolve(),
        device=config.device,
        dtype=config.dtype,
        slots=config.slots,
        context=config.context,
        cache_mib=config.cache_mib,
        adapters=adapters,
        restarts=RestartPolicy(limit=config.max_restarts),
    )


def _check_host(config: NodeConfig) -> None:
    """A port that asks for no key must not be reachable by accident."""
    try:
        is_loopback = ipaddress.ip_address(config.host).is_loopback
    except ValueError:
        is_loopback = config.host == "localhost"
    if not is_loopback and not config.insecure:
        raise Misconfigured(
            f"--host {config.host} opens the node's HTTP ports to others, without a key; a gateway reaches the node through the"
            " mesh and needs no port: leave --host out, or add --insecure"
        )
