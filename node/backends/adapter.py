"""LoRA adapters as models of their own, over the backend of the model that they were made for.

1. A directory with `adapter_config.json` and no `config.json` is an adapter. Its base is the served model that its configuration
   names, by id, folder or path; or the only one there is.
2. An adapter has no process and no state of its own: it is ready when its base is. It generates text; it makes no embeddings.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
import trio

from mesh.errors import BadRequest, Misconfigured
from node.backends.base import Backend, BackendStatus, nobody_listens

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mesh.messages.inference import InferenceRequest
    from mesh.messages.link import ModelLoad
    from mesh.messages.record import ModelEntry
    from mesh.service import Emit

CONFIG = "adapter_config.json"


class Base(Protocol):
    """A backend that serves adapters; `adapters` are their digests by name, as far as they are known."""

    @property
    def entry(self) -> ModelEntry: ...

    @property
    def load(self) -> ModelLoad: ...

    @property
    def adapters(self) -> Mapping[str, str]: ...

    async def infer(self, request: InferenceRequest, emit: Emit) -> None: ...

    def status(self) -> BackendStatus: ...


class AdapterBackend(Backend):
    """One adapter, see the head of this file."""

    def __init__(self, name: str, base: Base) -> None:
        self.changed = nobody_listens
        self.base = base
        self._name = name

    def over(self, base: Base) -> AdapterBackend:
        """The same adapter, over something that stands before its base."""
        return AdapterBackend(self._name, base)

    @property
    def entry(self) -> ModelEntry:  # type: ignore[override]  # read-only here: it is the base's, under another name
        """What the record says of it."""
        base = self.base.entry
        digest = self.base.adapters.get(self._name, "")
        tasks = [task for task in base.capabilities.tasks if task != "embedding"]
        return msgspec.structs.replace(
            base,
            id=self._name,
            aliases=[],
            weights_digest=digest,
            numerics=hashlib.sha256(f"{base.numerics}\0{digest}".encode()).hexdigest()[:32] if base.numerics else "",
            capabilities=msgspec.structs.replace(base.capabilities, tasks=tasks),
        )

    @property
    def load(self) -> ModelLoad:  # type: ignore[override]  # as `entry`
        """Its base's: both share the engine."""
        return self.base.load

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The base does everything; `started()` at once."""
        task_status.started()
        await trio.sleep_forever()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request through the adapter. Raises BadRequest for embeddings, and what the base raises."""
        if request.task == "embedding":
            raise BadRequest(f"{self._name} is an adapter and makes no embeddings", code="unsupported_task", param="model")
        await self.base.infer(msgspec.structs.replace(request, model=self._name), emit)

    def status(self) -> BackendStatus:
        """Its base's state; process and engine are told there."""
        base = self.base.status()
        return BackendStatus(
            state=base.state, running=base.running, uptime=base.uptime, last_error=base.last_error, refused=base.refused
        )


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter and no model."""
    return (path / CONFIG).is_file() and not (path / "config.json").exists()


def adapters_by_base(models: Mapping[str, Path]) -> dict[str, dict[str, Path]]:
    """The models that are none, each with the adapters that were made for it. Raises Misconfigured."""
    sorted_out: dict[str, dict[str, Path]] = {name: {} for name, path in models.items() if not is_adapter(path)}
    for name, path in models.items():
        if is_adapter(path):
            sorted_out[_base_of(name, path, {base: models[base] for base in sorted_out})][name] = path.resolve()
    return sorted_out


def _base_of(name: str, path: Path, models: Mapping[str, Path]) -> str:
    wanted = str(_config(path).get("base_model_name_or_path") or "")
    short = Path(wanted).name.lower()
    named = [
        model for model, folder in models.items() if wanted == model or short in (model.lower(), folder.resolve().name.lower())
    ]
    if len(named) == 1:
        return named[0]
    if not named and len(models) == 1:
        return next(iter(models))
    served = ", ".join(models) or "none"
    raise Misconfigured(
        f"{name} is an adapter for {wanted or 'a model that it does not name'}, and it is not clear which of the models served"
        f" here that is ({served}); serve its base beside it: --model {short or 'BASE'}=DIRECTORY"
    )


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise Misconfigured(f"cannot read {path / CONFIG}: {error}; copy the adapter's own again") from error
    if not isinstance(config, dict):
        raise Misconfigured(f"{path / CONFIG} is not a JSON object; copy the adapter's own again")
    return config
