"""From the configuration to backends. What cannot work is refused here, before anything is started."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from mesh.errors import Misconfigured
from mesh.openai.remote.client import RemoteClient
from node.backends.adapter import AdapterBackend, adapters_by_base
from node.backends.anthropic.server import URL as ANTHROPIC_URL
from node.backends.anthropic.server import AnthropicServer, secrets
from node.backends.argv import arguments
from node.backends.cli import CliBackend
from node.backends.found import FoundBackend
from node.backends.keys import key_of
from node.backends.mock import MockBackend, parse_mock
from node.backends.plan import plan
from node.backends.program import ProgramBackend
from node.backends.remote import RemoteBackend
from node.backends.servers import OpenAIServer
from node.backends.settings import BackendSettings
from node.backends.torch import TorchBackend, TorchSettings, require_worker_packages
from node.backends.unit import Unit
from node.http import free_pair, url_of
from node.model_directory import check_model_directory
from node.models import DEMO_MODEL_ID, demo_model_path
from node.multiplexer.build import from_file, shared

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from mesh.messages.worker import Loading
    from node.backends.base import Backend
    from node.config import NodeConfig

    OnLoading = Callable[[str, Loading], None]

OPENAI_URL = "https://api.openai.com"
SERVED_BY_US = frozenset({"torch", "mock", "openai", "anthropic", "cli", "hooks"})
"""Types whose P the node answers; the others are programs that have it for themselves."""


@dataclass(frozen=True)
class Built:
    """One backend of the configuration: its models, and who answers OpenAI HTTP at its P."""

    unit: Unit
    backends: Sequence[Backend]

    @property
    def answers_itself(self) -> bool:
        """True when the program has P for itself; else the node serves it."""
        return self.unit.settings.kind not in SERVED_BY_US


def build_backends(config: NodeConfig, *, on_loading: OnLoading | None = None) -> Sequence[Backend]:
    """The backends that the configuration asks for; none is running yet. Raises Misconfigured."""
    return [backend for built in build(config, on_loading=on_loading) for backend in built.backends]


def build(config: NodeConfig, *, on_loading: OnLoading | None = None) -> Sequence[Built]:
    """The same, by the backends of the file. Raises Misconfigured."""
    units = [_with_port(unit) for unit in plan(config)]
    if not config.insecure:
        _check_host(config, units)
    if config.multiplexer_file is not None:
        return [_multiplexed(config, config.multiplexer_file, units[0])]
    if config.model and not any(unit.settings.kind == "torch" for unit in units):
        raise Misconfigured(
            f"--model is for the built-in engine; the type {units[0].settings.kind} takes no such models; leave it out"
        )
    first = next((unit for unit in units if unit.settings.kind == "torch"), None)
    built = [Built(unit, _made(config, unit, on_loading, is_first=unit is first)) for unit in units]
    return _sharing(built, config.switch_policy) if config.switch_policy else built


def _multiplexed(config: NodeConfig, file: Path, unit: Unit) -> Built:
    """The models of a multiplexer file, all behind the node's own P."""
    if config.backend or config.model:
        raise Misconfigured("--multiplexer-file names all models of its node; leave --model, [[backend]] and their flags out")
    settings = msgspec.structs.replace(unit.settings, type="hooks")
    return Built(replace(unit, settings=settings, id="hooks"), from_file(file, config.switch_policy))


def _sharing(built: Sequence[Built], policy: str) -> Sequence[Built]:
    """The same backends, at most one of them awake."""
    for each in built:
        if each.answers_itself and len(each.unit.settings.models) != 1:
            raise Misconfigured(f"{each.unit.settings.where('models')}: to share an accelerator it must name its only model")
    presented = iter(shared([backend for each in built for backend in each.backends], policy))
    return [replace(each, backends=[next(presented) for _ in each.backends]) for each in built]


def build_found(config: NodeConfig, built: Sequence[Built]) -> Built:
    """A backend for what other programs of this machine serve now and later, beside those that were configured."""
    own = {number for each in built for number in (each.unit.port, each.unit.port + 1)}
    names = {each.unit.id for each in built}
    name = next(name for number in range(len(names) + 1) if (name := f"found-{number}" if number else "found") not in names)

    def make(settings: BackendSettings) -> RemoteBackend:
        unit = Unit(settings=settings, id=settings.id, host=config.host, check_interval=config.check_interval)
        return _remote(unit)

    unit = Unit(settings=BackendSettings(type="openai", id=name), id=name, host=config.host)
    return Built(unit, [FoundBackend(make, own)])


def _made(config: NodeConfig, unit: Unit, on_loading: OnLoading | None = None, *, is_first: bool = False) -> Sequence[Backend]:
    match unit.settings.kind:
        case "torch":
            named = config.model if is_first else {}
            return _torch(config, unit, named, on_loading)
        case "mock":
            return _mocks(unit.settings)
        case "openai":
            return [_remote(unit)]
        case "anthropic":
            return [_anthropic(unit)]
        case "cli":
            _require_models(unit.settings)
            return [CliBackend(unit)]
        case _:
            url = _url(unit.settings, url_of(unit.host, unit.port))
            return [ProgramBackend(unit, OpenAIServer(url, _client(unit.settings, url), unit.settings.tasks))]


def _remote(unit: Unit) -> RemoteBackend:
    url = _url(unit.settings, OPENAI_URL)
    return RemoteBackend(unit, OpenAIServer(url, _client(unit.settings, url), unit.settings.tasks))


def _with_port(unit: Unit) -> Unit:
    """A program has to be told its port before it starts."""
    if unit.port or unit.settings.kind in SERVED_BY_US:
        return unit
    return replace(unit, port=free_pair(unit.host))


def _client(settings: BackendSettings, url: str) -> RemoteClient:
    key = key_of(settings, url)
    return RemoteClient(secrets={"authorization": f"Bearer {key}"} if key else None)


def _anthropic(unit: Unit) -> Backend:
    url = _url(unit.settings, ANTHROPIC_URL)
    _require_models(unit.settings)
    return RemoteBackend(unit, AnthropicServer(url, RemoteClient(secrets=secrets(key_of(unit.settings, url)))))


def _require_models(settings: BackendSettings) -> None:
    if not settings.models:
        raise Misconfigured(f"{settings.where('models')}: the type {settings.kind} needs models; name what it shall be asked as")


def _url(settings: BackendSettings, default: str) -> str:
    url = settings.url or default
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
        raise Misconfigured(f"{settings.where('url')}: {url!r} is not a server's address; it looks like http://127.0.0.1:11434")
    return url


def _mocks(settings: BackendSettings) -> Sequence[Backend]:
    named = settings.args if isinstance(settings.args, str) else ",".join(arguments(settings))
    knobs = [f"{name}={value}" for name, value in settings.knobs.items()]
    try:
        models, behaviour = parse_mock(";".join([named or ",".join(settings.models), *knobs]))
    except ValueError as error:
        raise Misconfigured(
            f"{settings.where('args')}: {error}; write it as --args 'model-a,model-b;tokens_per_second=50'"
        ) from error
    return [MockBackend(model, behaviour) for model in models]


def _torch(config: NodeConfig, unit: Unit, named: Mapping[str, str], on_loading: OnLoading | None) -> Sequence[Backend]:
    settings = unit.settings
    if settings.args:
        raise Misconfigured("--args is for --service-type mock or command; leave it out, or add the type")
    models = _models(named, settings)
    by_base = adapters_by_base(models)
    for model in by_base:
        check_model_directory(models[model])
    require_worker_packages()
    backends: list[Backend] = []
    for model, adapters in by_base.items():
        base = TorchBackend(_torch_settings(config, unit, model, models[model], adapters), on_loading=on_loading)
        backends += [base, *(AdapterBackend(name, base) for name in adapters)]
    return backends


def _models(named: Mapping[str, str], settings: BackendSettings) -> dict[str, Path]:
    models = {model: Path(path).expanduser() for model, path in named.items()}
    if settings.path:
        path = Path(settings.path).expanduser()
        name = settings.models[0] if settings.models else path.resolve().name
        if name in models:
            raise Misconfigured(f"--path and --model both name a model {name!r}; leave one of them out")
        models[name] = path
    elif settings.models:
        raise Misconfigured(f"{settings.where('path')}: the type torch needs path, the directory of {settings.models[0]!r}")
    return models or {DEMO_MODEL_ID: demo_model_path()}


def _torch_settings(config: NodeConfig, unit: Unit, model: str, path: Path, adapters: Mapping[str, Path]) -> TorchSettings:
    return TorchSettings(
        model=model,
        path=path.resolve(),
        aliases=tuple(unit.settings.aliases),
        device=config.device,
        dtype=config.dtype,
        weights=unit.settings.weights or config.weights,
        threads=config.threads,
        slots=config.slots,
        context=config.context,
        cache_mib=config.cache_mib,
        adapters=adapters,
        weight=unit.settings.weight,
        restarts=unit.restarts,
    )


def _check_host(config: NodeConfig, units: Sequence[Unit]) -> None:
    """A port that asks for no key must not be reachable by accident."""
    try:
        is_loopback = ipaddress.ip_address(config.host).is_loopback
    except ValueError:
        is_loopback = config.host == "localhost"
    if is_loopback:
        return
    programs = [unit.id for unit in units if unit.settings.kind not in SERVED_BY_US]
    if config.api_keys and not programs:
        return
    why = f"{programs[0]} answers there itself, and --api-keys does not reach it" if config.api_keys else "without a key"
    raise Misconfigured(
        f"--host {config.host} opens the node's HTTP ports to others ({why}); a gateway reaches the node through the mesh and"
        " needs no port: leave --host out, or add --insecure"
    )
