"""From a configuration to models that share an accelerator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mesh.errors import Misconfigured
from mesh.openai.remote.client import RemoteClient
from node.backends.mock import MockBackend
from node.multiplexer.file import read_multiplexer_file
from node.multiplexer.hooked import HookedModel
from node.multiplexer.loaded import Loaded
from node.multiplexer.mock import SleepyMock
from node.multiplexer.multiplexer import Multiplexer
from node.multiplexer.plugins import policy_named
from node.multiplexer.presented import present
from node.multiplexer.settings import MultiplexerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from node.backends.base import Backend
    from node.multiplexer.presented import Presented
    from node.multiplexer.switchable import Switchable


def from_file(path: Path, policy: str = "") -> Sequence[Presented]:
    """The models of a multiplexer file; `policy` beats the file's. Raises Misconfigured."""
    file = read_multiplexer_file(path)
    named = policy_named(policy or file.settings.policy_type)
    models = [HookedModel(settings, RemoteClient()) for settings in file.models]
    return present(Multiplexer(models, file.settings, policy=named))


def shared(backends: Sequence[Backend], policy: str) -> Sequence[Presented]:
    """These backends, at most one of them awake. Raises Misconfigured when one of them cannot sleep."""
    named = policy_named(policy)
    return present(Multiplexer([_switchable(backend) for backend in backends], MultiplexerSettings(), policy=named))


def _switchable(backend: Backend) -> Switchable:
    if isinstance(backend, MockBackend):
        return SleepyMock(backend.entry.id, backend.settings)
    able: Any = backend
    if not (hasattr(able, "wake") and hasattr(able, "sleep")):
        raise Misconfigured(
            f"{backend.entry.id} cannot be put to sleep, so it can share no accelerator: leave --switch-policy out, or run it on"
            " another node"
        )
    return Loaded(able)
