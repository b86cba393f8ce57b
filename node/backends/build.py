"""From the configuration to backends. What cannot work is refused here, before anything is started."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit

import msgspec

from mesh.addresses import is_loopback_host
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
from node.multiplexer.hooked import HookedModel, HookSettings
from node.multiplexer.memory import parse_size
from node.multiplexer.settings import MultiplexerSettings

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
    _check_hooks_ports(units)
    first = next((unit for unit in units if unit.settings.kind == "torch"), None)
    built = [Built(unit, _made(config, unit, on_loading, is_first=unit is first)) for unit in units]
    _check_once(built)
    return _sharing(config, built)


def _multiplexed(config: NodeConfig, file: Path, unit: Unit) -> Built:
    """The models of a multiplexer file, all behind the node's own P."""
    if config.backend or config.model or config.multiplexer:
        raise Misconfigured(
            "--multiplexer-file names all models of its node, and how they take turns; leave --model, [[backend]], [multiplexer]"
            " and their flags out"
        )
    settings = msgspec.structs.replace(unit.settings, type="hooks")
    return Built(replace(unit, settings=settings, id="hooks"), from_file(file, config.switch_policy, device=config.device))


def _check_once(built: Sequence[Built]) -> None:
    """Whose models are not written down is known only later; `NodeService` says then whose are left out."""
    owners: dict[str, Built] = {}
    for each in built:
        for model in [entry.id for backend in each.backends for entry in backend.entries()]:
            other = owners.setdefault(model, each)
            if other is not each:
                raise Misconfigured(
                    f"{each.unit.settings.where('models')}: {each.unit.id} and {other.unit.id} both have a model {model!r}, and a"
                    " request could not say which it means; give one of them another name in models"
                )


def _sharing(config: NodeConfig, built: Sequence[Built]) -> Sequence[Built]:
    """The same, where those that share the accelerator take turns: all that may; where nobody asked for it, those with hooks."""
    asked = bool(config.switch_policy or config.multiplexer)
    sharing = [each for each in built if each.unit.settings.kind == "hooks" or (asked and each.unit.settings.shared)]
    if not sharing:
        if asked:
            raise Misconfigured(
                "no backend shares the accelerator; leave shared = false out, or --switch-policy and [multiplexer]"
            )
        return built
    for each in sharing:
        if each.answers_itself and len(each.unit.settings.models) != 1:
            raise Misconfigured(f"{each.unit.settings.where('models')}: to share an accelerator it must name its only model")
    backends = [backend for each in sharing for backend in each.backends]
    stated = {backend.entry.id: _memory(each.unit.settings) for each in sharing for backend in each.backends}
    taking_turns = iter(shared(backends, _turns(config), config.switch_policy, device=config.device, memory=stated))
    return [replace(each, backends=[next(taking_turns) for _ in each.backends]) if each in sharing else each for each in built]


def _memory(settings: BackendSettings) -> int:
    return parse_size(settings.memory) if settings.memory else 0


def _turns(config: NodeConfig) -> MultiplexerSettings:
    """How they take turns, from the table [multiplexer]."""
    if len(config.multiplexer) > 1:
        raise Misconfigured(f"{config.multiplexer[1].origin}: a node has one accelerator to share; leave one [[multiplexer]]")
    return next(iter(config.multiplexer), MultiplexerSettings())


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
        case "hooks":
            return [_hooked(unit)]
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


def _hooked(unit: Unit) -> Backend:
    settings = unit.settings
    if len(settings.models) != 1:
        raise Misconfigured(f"{settings.where('models')}: the type hooks is about one model; name it in models")
    for key in ("url", "wake", "sleep", "alive"):
        if not getattr(settings, key):
            raise Misconfigured(f"{settings.where(key)}: the type hooks needs {key}")
    url = _url(settings, settings.url)
    hooks = HookSettings(
        model=settings.models[0],
        wake=settings.wake,
        sleep=settings.sleep,
        alive=settings.alive,
        wake_timeout_secs=settings.wake_timeout_secs,
        sleep_timeout_secs=settings.sleep_timeout_secs,
        alive_timeout_secs=settings.alive_timeout_secs,
        aliases=tuple(settings.aliases),
        upstream_model=settings.upstream_model,
        context_length=settings.context_length,
        weight=settings.weight,
        memory=_memory(settings),
    )
    return HookedModel(hooks, OpenAIServer(url, _client(settings, url), settings.tasks))


def _check_hooks_ports(units: Sequence[Unit]) -> None:
    """The node answers at P and P+1 of its backends itself: a model's server cannot."""
    owners = {number: unit for unit in units if unit.port for number in (unit.port, unit.port + 1)}
    for unit in units:
        if unit.settings.kind != "hooks":
            continue
        parts = urlsplit(_url(unit.settings, "http://localhost"))
        if parts.hostname in ("127.0.0.1", "localhost", unit.host) and (owner := owners.get(parts.port or 80)):
            raise Misconfigured(
                f"{unit.settings.where('url')}: port {parts.port} is P or P+1 of [[backend]] {owner.id} on this node; url is"
                " where the model's own server answers, port where the node does"
            )


def _require_models(settings: BackendSettings) -> None:
    if not settings.models:
        raise Misconfigured(f"{settings.where('models')}: the type {settings.kind} needs models; name what it shall be asked as")


def _url(settings: BackendSettings, default: str) -> str:
    url = settings.url or default
    parts = urlsplit(url)
    if (
        not _has_port(parts)
        or parts.scheme not in ("http", "https")
        or not parts.hostname
        or parts.username
        or parts.query
        or parts.fragment
    ):
        raise Misconfigured(f"{settings.where('url')}: {url!r} is not a server's address; it looks like http://127.0.0.1:11434")
    return url


def _has_port(parts: SplitResult) -> bool:
    """Whether its port, if it names one, can be one."""
    try:
        return parts.port != 0
    except ValueError:
        return False


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
        sleep_level=unit.settings.sleep_level or 2,
        restarts=unit.restarts,
    )


def _check_host(config: NodeConfig, units: Sequence[Unit]) -> None:
    """A port that asks for no key must not be reachable by accident."""
    if is_loopback_host(config.host):
        return
    programs = [unit.id for unit in units if unit.settings.kind not in SERVED_BY_US]
    if config.api_keys and not programs:
        return
    why = f"{programs[0]} answers there itself, and --api-keys does not reach it" if config.api_keys else "without a key"
    raise Misconfigured(
        f"--host {config.host} opens the node's HTTP ports to others ({why}); a gateway reaches the node through the mesh and"
        " needs no port: leave --host out, or add --insecure"
    )
