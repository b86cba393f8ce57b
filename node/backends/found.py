"""Servers of others on this machine, as they come and go: one backend for all that `discovery` finds.

1. It looks every `EVERY` seconds. What is new is served at once; what was not there `MISSES` times in a row is served no longer.
2. A server that has other models than before is taken anew. One that works on requests is not asked for its list: some break off
   an answer for that.
3. A model that two servers have is asked of the one with the lower port.
4. Having found nothing is no fault: then the node has no such backend.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING

import trio

from mesh.errors import NotFound
from mesh.messages.link import ModelLoad
from mesh.messages.record import ModelEntry
from node.backends.base import Backend, BackendStatus, nobody_listens
from node.backends.discovery import PORTS, discover

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from mesh.messages.inference import InferenceRequest
    from mesh.messages.record import ModelState
    from mesh.service import Emit
    from node.backends.remote import RemoteBackend
    from node.backends.settings import BackendSettings

EVERY = 30.0
MISSES = 2
_BEST: tuple[ModelState, ...] = ("ready", "asleep", "loading", "failed")

logger = logging.getLogger(__name__)


class _Server:
    """One of them. Its `scope` is that of its life."""

    def __init__(self, settings: BackendSettings, backend: RemoteBackend) -> None:
        self.settings = settings
        self.backend = backend
        self.scope = trio.CancelScope()


class FoundBackend(Backend):
    """All of them; see the head of this file."""

    gives_tokens = False
    expected = False

    def __init__(
        self,
        make: Callable[[BackendSettings], RemoteBackend],
        own_ports: Collection[int],
        *,
        ports: Mapping[int, str] = PORTS,
        every: float = EVERY,
    ) -> None:
        """`make` makes the backend of one server, `own_ports` are never looked at."""
        self.changed = nobody_listens
        self._make = make
        self._own_ports = own_ports
        self._ports = ports
        self._every = every
        self._servers: dict[int, _Server] = {}
        self._leaving: list[_Server] = []
        self._misses: Counter[int] = Counter()

    @property
    def entry(self) -> ModelEntry:  # type: ignore[override]  # read-only here: it follows the servers
        """The first model, or a stand-in while there is none."""
        return next(iter(self.entries()), ModelEntry(id="found", backend="openai"))

    @property
    def load(self) -> ModelLoad:  # type: ignore[override]  # read-only here: it is counted, not stored
        """That of the first model."""
        return next(iter(self.loads().values()), ModelLoad("loading"))

    def entries(self) -> Sequence[ModelEntry]:
        """The models of all servers, each once."""
        found: dict[str, ModelEntry] = {}
        for backend in self._backends:
            for entry in backend.entries():
                found.setdefault(entry.id, entry)
        return list(found.values())

    def loads(self) -> Mapping[str, ModelLoad]:
        """How busy each one's server is."""
        found: dict[str, ModelLoad] = {}
        for backend in self._backends:
            for model, load in backend.loads().items():
                found.setdefault(model, load)
        return found

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look, and serve what is there, until cancelled; `started()` after the first look."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._look(nursery)
                task_status.started()
                task_status = trio.TASK_STATUS_IGNORED
                await trio.sleep(self._every)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request on the server that has its model. Raises NotFound, and what that raises."""
        for backend in self._backends:
            if any(entry.id == request.model for entry in backend.entries()):
                await backend.infer(request, emit)
                return
        raise NotFound(f"no server of this machine has {request.model} any more", code="model_not_found", param="model")

    def status(self) -> BackendStatus:
        """That of the best of them."""
        statuses = sorted((backend.status() for backend in self._backends), key=lambda status: _BEST.index(status.state))
        return statuses[0] if statuses else BackendStatus(state="loading", running=False)

    @property
    def _backends(self) -> list[RemoteBackend]:
        return [self._servers[port].backend for port in sorted(self._servers)]

    async def _look(self, nursery: trio.Nursery) -> None:
        busy = {port for port, server in self._servers.items() if server.backend.activity.in_flight}
        found = await discover({*self._own_ports, *busy}, self._ports)
        for port in sorted({*found, *self._servers} - busy):
            before = self._servers.get(port)
            await self._compare(port, before, found.get(port), nursery)
            if before is not None and self._servers.get(port) is not before:
                self._leaving.append(before)
        self._part()
        self.changed()

    async def _compare(self, port: int, before: _Server | None, now: BackendSettings | None, nursery: trio.Nursery) -> None:
        self._misses[port] = 0 if now is not None else self._misses[port] + 1
        if now is not None and (before is None or before.settings != now):
            logger.info("found %s with %s", now.url, ", ".join(now.models))
            server = _Server(now, self._make(now))
            server.backend.changed = self._told
            await nursery.start(self._live, server)
            self._servers[port] = server
        elif before is not None and self._misses[port] >= MISSES:
            logger.info("%s is gone; its models are served no longer", before.settings.url)
            del self._servers[port], self._misses[port]

    def _part(self) -> None:
        """End those whose place is somebody else's, once nothing runs on them."""
        for server in [one for one in self._leaving if not one.backend.activity.in_flight]:
            self._leaving.remove(server)
            server.scope.cancel()

    def _told(self) -> None:
        self.changed()

    @staticmethod
    async def _live(server: _Server, *, task_status: trio.TaskStatus[None]) -> None:
        with server.scope:
            await server.backend.run(task_status=task_status)
