"""From the configuration to the backends that will be run: who they are, where they listen, what they may be told.

1. Everything that the operator got wrong is found here or where the backend is made, before anything is started.
2. No two backends have one name, one port, or one model.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from mesh.config.sources import nearest
from mesh.errors import Misconfigured
from node.backends.ports import listen_ports, plan_ports
from node.backends.settings import TYPES, BackendSettings
from node.backends.unit import Unit
from node.supervisor import RestartPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from node.config import NodeConfig


def plan(config: NodeConfig) -> Sequence[Unit]:
    """What to run. Raises Misconfigured."""
    backends = config.backend or [BackendSettings()]
    for settings in backends:
        _check_keys(settings)
    _check_models(backends)
    names = _names(backends)
    wanted = [(f"[[backend]] {name}", settings.port) for name, settings in zip(names, backends, strict=True)]
    ports = plan_ports(wanted, config.port, taken=listen_ports(config.listen))
    return [
        Unit(
            settings=settings,
            id=name,
            host=config.host,
            port=port,
            restarts=_restarts(config, settings),
            check_interval=config.check_interval,
        )
        for settings, name, port in zip(backends, names, ports, strict=True)
    ]


def _check_keys(settings: BackendSettings) -> None:
    allowed = TYPES[settings.kind]
    for key in settings.said:
        if key not in allowed:
            raise Misconfigured(
                f"{settings.where(key)}: the type {settings.kind} has no use for {key}; leave it out, or give another type"
                f" ({nearest(key, sorted(allowed))})"
            )
    for key in ("aliases", "upstream_model"):
        if getattr(settings, key) and len(settings.models) != 1:
            raise Misconfigured(f"{settings.where(key)}: {key} is about the only model; name one in models")


def _check_models(backends: Sequence[BackendSettings]) -> None:
    owners: dict[str, BackendSettings] = {}
    for settings in backends:
        for model in settings.models:
            if model in owners:
                raise Misconfigured(
                    f"{settings.where('models')}: the model {model!r} is in {owners[model].where('models')} as well; give one of"
                    " them another name, with upstream_model for what the server calls it"
                )
            owners[model] = settings


def _names(backends: Sequence[BackendSettings]) -> list[str]:
    """Each one's id, else its type, numbered from the second of a type."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    for settings in backends:
        name = settings.id or settings.kind
        seen[name] += 1
        if settings.id and seen[name] > 1:
            raise Misconfigured(f"{settings.where('id')}: there is another backend {name!r}; give each its own id")
        names.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return names


def _restarts(config: NodeConfig, settings: BackendSettings) -> RestartPolicy:
    return RestartPolicy(
        delay=config.restart_delay if settings.restart_delay is None else settings.restart_delay,
        limit=config.max_restarts if settings.max_restarts is None else settings.max_restarts,
    )
