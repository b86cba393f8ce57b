"""What backends have in common whose models a server answers for: the models, their state, and requests on their way.

1. What is announced is what the settings name, else what the server lists; at most `MAX_LISTED` models that nobody named.
2. Ready means a real answer: the list with every named model, or one token where `upstream_model` says what to ask for. What is
   ready is only listened to: tokens cost somebody something.
3. A request for a model that is not ready is refused at once; so is one over the limit of requests under way.
4. The server knows no token ids: an answer of its models is continued elsewhere behind its text, by servers that are known to do
   that (`continues`), or not at all.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from typing import TYPE_CHECKING

import msgspec

from mesh.beyond_text import CANNOT_GO_ON, refuse_begun
from mesh.errors import BackendFailed, BadRequest, Busy, MeshError, Unavailable
from mesh.messages.inference import InferenceRequest
from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry
from mesh.openai.remote.client import RemoteModel
from node.backends.activity import Activity
from node.backends.base import Backend, nobody_listens

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from mesh.messages.inference import Event
    from mesh.messages.record import ModelState
    from mesh.service import Emit
    from node.backends.servers import Server
    from node.backends.unit import Unit

MAX_LISTED = 24
"""A node's record has room for about so many."""
_SILENT = frozenset({"service_unreachable", "service_lost", "engine_timeout"})
"""Codes of errors that no answer stands behind."""
SLOTS = 8
"""What a server is taken to do at once, for want of a better number."""


class ServedBackend(Backend):
    """The models of one server; see the head of this file."""

    gives_tokens = False

    def __init__(self, unit: Unit, server: Server) -> None:
        self.changed = nobody_listens
        self.activity = Activity()
        self._unit = unit
        self._server = server
        self._created = int(time.time())
        self._models = {name: RemoteModel(name) for name in unit.settings.models}

    @property
    @abstractmethod
    def state(self) -> ModelState:
        """How the server is; that of all its models."""

    @property
    def entry(self) -> ModelEntry:  # type: ignore[override]  # read-only here: it follows the server
        """The first model, or a stand-in under the backend's id while nobody knows any."""
        return self._entry(next(iter(self._models.values()), RemoteModel(self._unit.id)))

    @property
    def load(self) -> ModelLoad:  # type: ignore[override]  # read-only here: it is counted, not stored
        """How busy the server is."""
        running = self.activity.in_flight
        return ModelLoad(
            self.state,
            running=min(running, SLOTS),
            waiting=max(0, running - SLOTS),
            slots=SLOTS,
            step=self.activity.steps,
        )

    def entries(self) -> Sequence[ModelEntry]:
        """All its models; none while nobody knows any."""
        return [self._entry(model) for model in self._models.values()]

    def loads(self) -> Mapping[str, ModelLoad]:
        """They share the server."""
        return dict.fromkeys(self._models, self.load)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request on the server. Raises Unavailable, Busy, BadRequest, and what the server raises."""
        if self.state != "ready":
            raise self._not_ready()
        if self.activity.in_flight >= self._unit.max_requests:
            raise Busy(f"{self._unit.max_requests} requests are under way on {self._unit.id}; try again", retry_after=1)
        if request.task not in self._server.tasks:
            raise BadRequest(
                f"{request.model} can do {' and '.join(self._server.tasks)} only", code="unsupported_task", param="model"
            )
        refuse_begun(request, request.model, behind_text=self._unit.settings.goes_on)
        with self.activity.watching(emit) as watched:
            try:
                await self._server.infer(msgspec.structs.replace(request, model=self._upstream(request.model)), watched)
            except BadRequest as error:
                if request.said is None:
                    raise
                # The client's own request was good enough for a server already.
                raise Unavailable(f"the server does not go on with an answer: {error.message}", code=CANNOT_GO_ON) from error

    async def look(self) -> None:
        """See that the server answers, and which models it has. No time limit of its own. Raises MeshError when it does not."""
        if self._unit.settings.upstream_model:
            await self.prove()
            return
        listed = {model.id: model for model in await self._server.models()}
        named = self._unit.settings.models
        if missing := [name for name in named if name not in listed]:
            raise BackendFailed(f"it lists {_some(listed)}, and not {', '.join(missing)}", code="no_models")
        if not named and len(listed) > MAX_LISTED:
            raise BackendFailed(f"it lists {len(listed)} models; name in `models` those to announce", code="no_models")
        self._models = {name: listed[name] for name in named or listed}

    async def listen(self) -> None:
        """Hear of the server at all, without asking for a token. No time limit of its own. Raises MeshError when it is silent."""
        try:
            await self._server.models()
        except MeshError as error:
            if error.code in _SILENT:
                raise

    async def prove(self) -> None:
        """Have the first model say one token, or make one vector. No time limit of its own. Raises MeshError when it does not."""
        model = self._upstream(self.entry.id)
        await self._server.infer(_smallest(self._server.tasks, model), _nothing)

    def _upstream(self, model: str) -> str:
        settings = self._unit.settings
        if settings.upstream_model:
            return settings.upstream_model
        return model if model in self._models else next(iter(self._models), model)

    def _entry(self, model: RemoteModel) -> ModelEntry:
        settings = self._unit.settings
        return ModelEntry(
            id=model.id,
            aliases=list(settings.aliases),
            state=self.state,
            context_length=model.context_length or settings.context_length,
            weight=settings.weight,
            backend=settings.kind,
            created=model.created or self._created,
            capabilities=Capabilities(
                tasks=list(self._server.tasks), protocols=[self._server.protocol], continues=settings.goes_on
            ),
        )

    def _not_ready(self) -> MeshError:
        if self.state == "failed":
            return Unavailable(
                f"{self._unit.id} has failed on this node; its operator finds the reason in /health", code="model_failed"
            )
        if self.state == "asleep":
            return Unavailable(f"{self._unit.id} is asleep on this node; wake it", code="model_asleep", retry_after=2)
        return Unavailable(f"{self._unit.id} is still loading on this node; try again", code="model_loading", retry_after=2)


def _smallest(tasks: Sequence[str], model: str) -> InferenceRequest:
    """The least that a model can be asked for."""
    name = f"look-{time.monotonic_ns()}"
    if "chat" in tasks:
        return InferenceRequest(request_id=name, model=model, messages=[{"role": "user", "content": "Hi"}], max_tokens=1)
    if "completion" in tasks:
        return InferenceRequest(request_id=name, model=model, task="completion", prompt="Hi", max_tokens=1)
    return InferenceRequest(request_id=name, model=model, task="embedding", inputs=["Hi"])


def _some(names: Mapping[str, object]) -> str:
    shown = list(names)[:5]
    return ", ".join(shown) + (f" and {len(names) - 5} more" if len(names) > len(shown) else "")


def _nothing(_: Event) -> None:
    """What a look says is of no interest, only that it says it."""
