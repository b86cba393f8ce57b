"""From a configuration to models that share an accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh.errors import Misconfigured
from mesh.openai.remote.client import RemoteClient
from node.backends.adapter import AdapterBackend
from node.backends.mock import MockBackend
from node.backends.servers import OpenAIServer
from node.multiplexer.file import read_multiplexer_file
from node.multiplexer.hooked import HookedModel
from node.multiplexer.loaded import Loaded
from node.multiplexer.memory import FREE, ONE, parse_size
from node.multiplexer.mock import SleepyMock
from node.multiplexer.multiplexer import Multiplexer
from node.multiplexer.plugins import policy_named
from node.multiplexer.presented import present

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from node.backends.base import Backend
    from node.multiplexer.hooked import HookSettings
    from node.multiplexer.presented import Presented
    from node.multiplexer.settings import MultiplexerSettings
    from node.multiplexer.switchable import Switchable


def from_file(path: Path, policy: str = "", *, device: str = "auto") -> Sequence[Presented]:
    """The models of a multiplexer file; `policy` beats the file's. Raises Misconfigured."""
    file = read_multiplexer_file(path)
    models = [HookedModel(settings, _server(settings)) for settings in file.models]
    return present(_multiplexer(models, file.settings, policy, device))


def _server(settings: HookSettings) -> OpenAIServer:
    return OpenAIServer(f"http://127.0.0.1:{settings.port}", RemoteClient())


def shared(
    backends: Sequence[Backend],
    settings: MultiplexerSettings,
    policy: str = "",
    *,
    device: str = "auto",
    memory: Mapping[str, int] | None = None,
) -> Sequence[Backend]:
    """These backends, taking turns; an adapter goes with its base. Raises Misconfigured.

    `policy` beats the settings'; `memory` is what models are said to take while they are awake, in bytes.
    """
    stated = memory or {}
    members = [
        _switchable(backend, stated.get(backend.entry.id, 0)) for backend in backends if not isinstance(backend, AdapterBackend)
    ]
    multiplexer = _multiplexer(members, settings, policy, device)
    adapters = [backend for backend in backends if isinstance(backend, AdapterBackend)]
    multiplexer.adapters = {adapter.entry.id: adapter.base.entry.id for adapter in adapters}
    bases = {presented.entry.id: presented for presented in present(multiplexer)}
    return [
        backend.over(bases[backend.base.entry.id]) if isinstance(backend, AdapterBackend) else bases[backend.entry.id]
        for backend in backends
    ]


def _multiplexer(models: Sequence[Switchable], settings: MultiplexerSettings, policy: str, device: str) -> Multiplexer:
    if settings.memory_budget not in (ONE, FREE):
        most = parse_size(settings.memory_budget)
        for model in models:
            if model.memory > most:
                raise Misconfigured(
                    f"{model.entry.id} is said to take more memory than memory_budget, {settings.memory_budget}, allows; correct"
                    " one of them"
                )
    return Multiplexer(models, settings, policy=policy_named(policy or settings.policy_type), device=device)


def _switchable(backend: Backend, memory: int) -> Switchable:
    if isinstance(backend, HookedModel):
        return backend
    if isinstance(backend, MockBackend):
        return SleepyMock(backend.entry.id, backend.settings, memory=memory)
    able: Any = backend
    if not (hasattr(able, "wake") and hasattr(able, "sleep")):
        raise Misconfigured(
            f"{backend.entry.id} cannot be put to sleep, so it can share no accelerator: say shared = false in its [[backend]],"
            " or leave --switch-policy and [multiplexer] out"
        )
    return Loaded(able, memory=memory)
