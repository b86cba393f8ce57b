"""The foreign services of this gateway: registered over HTTP, kept by heartbeats, served to the mesh as our own models.

1. At most `MAX_SERVICES` services and `MAX_MODELS` models of each.
2. A change is on the disk before the caller hears that it was made, or `problem` says why not. Heartbeats are stored in between.
3. Probes run side by side, each within `PROBE_SECONDS`, one at a time of each service: a dead one never makes others look stale.
4. A service that is removed or replaced takes nothing new; what runs on it may finish within the grace time.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import msgspec
import trio

from gateway.registry_view import offers
from gateway.registry_view.requests import Requests
from gateway.registry_view.service import Cadence, ForeignService
from gateway.registry_view.store import Row
from mesh.errors import Busy, MeshError, NotFound
from mesh.openai.remote.client import RemoteClient

if TYPE_CHECKING:
    from gateway.registry_view.registration import Registration
    from gateway.registry_view.store import ServiceStore
    from mesh.messages.inference import InferenceRequest
    from mesh.messages.link import ModelLoad
    from mesh.messages.record import ModelEntry
    from mesh.service import Emit

MAX_SERVICES = 1000
MAX_MODELS = 64
PROBE_SECONDS = 5.0
PROBES = 32
SWEEP_SECONDS = 1.0
STORE_SECONDS = 60.0

logger = logging.getLogger(__name__)


class ForeignServices:
    """An inference service over all of them; see the head of this file. Nothing is probed or forgotten before `run`."""

    def __init__(
        self,
        store: ServiceStore | None = None,
        *,
        via: str = "",
        client: RemoteClient | None = None,
        cadence: Cadence | None = None,
    ) -> None:
        """`via`: our peer id; `client` instead of one of our own."""
        self.services: dict[str, ForeignService] = {}
        self.changed = trio.Event()
        """Set, and replaced by a new one, whenever a service came, went or changed its health or models."""
        self._store = store
        self._cadence = cadence or Cadence()
        self._client = client or RemoteClient(via=via)
        self._requests = Requests(self.services, self._client, self._probe_soon)
        self._beaten: set[str] = set()
        self._probes = trio.CapacityLimiter(PROBES)
        self._due = trio.Event()

    @property
    def problem(self) -> str | None:
        """Why registrations would not survive a restart; None when they would."""
        return self._store.problem if self._store else "this gateway stores no registrations"

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Bring back what was stored, then probe and forget until cancelled. Raises Misconfigured for a newer version's file."""
        for row in await self._store.load() if self._store else []:
            self.services[row.registration.name] = ForeignService(row.registration, self._cadence, row.last_heartbeat)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._sweep, nursery)
                nursery.start_soon(self._keep_beats)
                task_status.started()
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                await self._client.aclose()

    # What the registry's routes do

    async def register(self, registration: Registration) -> ForeignService:
        """Add a service, or replace the one of that name. Raises Busy when there are too many."""
        known = self.services.get(registration.name)
        if known is None and len(self.services) >= MAX_SERVICES:
            raise Busy(f"this gateway has {MAX_SERVICES} services, its limit; remove some", code="too_many_services")
        if known is not None and known.registration.base == registration.base:
            known.registration = registration
            known.beat()
        else:
            if known is not None:
                known.retire()
            self.services[registration.name] = known = ForeignService(registration, self._cadence)
        self._probe_soon(known)
        await self._save(known)
        return known

    async def remove(self, name: str) -> None:
        """Forget a service. Raises NotFound."""
        self.get(name).retire()
        del self.services[name]
        self._tell()
        if self._store:
            await self._store.write({name: None})

    async def beat(self, name: str, status: str | None) -> ForeignService:
        """A heartbeat came, with a new status or without. Raises NotFound: the service must register again."""
        service = self.get(name)
        was_healthy = service.is_healthy
        service.beat()
        self._beaten.add(name)
        if status is not None and status != service.registration.status:
            service.registration = msgspec.structs.replace(service.registration, status=status)
            await self._save(service)
        if service.is_healthy != was_healthy:
            self._tell()
        return service

    async def probe(self, service: ForeignService) -> None:
        """Look at a service now: its supervisor, if it has one, and its models. Blocks for at most PROBE_SECONDS."""
        if service.probing is not None:
            await service.probing.wait()
            return
        service.probing = trio.Event()
        try:
            await self._probe(service)
        finally:
            service.probing.set()
            service.probing = None

    async def _probe(self, service: ForeignService) -> None:
        before = (service.is_healthy, service.models)
        try:
            with trio.fail_after(PROBE_SECONDS):
                problem = await self._look(service)
        except trio.TooSlowError:
            problem = f"it did not answer within {PROBE_SECONDS:g} s"
        except MeshError as error:
            problem = error.message
        except Exception:
            logger.exception("the probe of %s failed", service.name)
            problem = "the probe failed; the gateway's log says why"
        if problem and service.answered is not False:
            logger.warning("service %s is unhealthy: %s", service.name, problem)
        service.saw(answered=not problem, problem=problem)
        if before != (service.is_healthy, service.models):
            self._tell()

    def get(self, name: str) -> ForeignService:
        """The service of that name. Raises NotFound."""
        service = self.services.get(name)
        if service is None:
            raise NotFound(f"no service is called {name[:128]!r}; register it with POST /services", code="service_not_found")
        return service

    # What the mesh hears

    def entries(self) -> list[ModelEntry]:
        """One entry per model, ready while a healthy service has it; the ready ones first, then by id."""
        return offers.entries(self.services.values())

    def load(self) -> dict[str, ModelLoad]:
        """How busy they are, by model."""
        return offers.load(self.services.values(), self.entries())

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request on one of them. Raises MeshError."""
        await self._requests.infer(request, emit)

    async def idle(self) -> None:
        """Wait until no request runs. No time limit of its own."""
        await self._requests.idle()

    # Looking after them

    async def _look(self, service: ForeignService) -> str:
        """What is wrong with the service; "" when nothing is. Takes in its models."""
        registration = service.registration
        if registration.babysitter_url and not await self._client.healthy(f"{registration.babysitter_url}/health"):
            return "its supervisor says that it is down"
        if registration.routable:
            models = await self._client.models(registration.base)
            service.lists(models[:MAX_MODELS])
        elif not await self._client.healthy(f"{registration.base}/health"):
            return "its /health says that it is down"
        return ""

    def _probe_soon(self, service: ForeignService) -> None:
        service.probe_at = -math.inf
        self._due.set()
        self._due = trio.Event()

    async def _sweep(self, nursery: trio.Nursery) -> None:
        """Find what is due: probes, services to forget, changes that only time made."""
        healthy: set[str] = set()
        while True:
            now = trio.current_time()
            for service in [one for one in self.services.values() if one.silence > self._cadence.purge]:
                logger.warning("service %s was not heard of for %g s and is forgotten", service.name, self._cadence.purge)
                nursery.start_soon(self._purge, service)
            for service in [one for one in self.services.values() if one.probe_at <= now]:
                service.probe_at = math.inf
                nursery.start_soon(self._probe_in_turn, service)
            before, healthy = healthy, {one.name for one in self.services.values() if one.is_healthy}
            if before != healthy:
                self._tell()
            due = self._due
            with trio.move_on_after(SWEEP_SECONDS):
                await due.wait()

    async def _probe_in_turn(self, service: ForeignService) -> None:
        async with self._probes:
            await self.probe(service)
        if service.probe_at == math.inf:
            # It waited for somebody else's probe, and that one was given up.
            self._probe_soon(service)

    async def _purge(self, service: ForeignService) -> None:
        if self.services.get(service.name) is service:
            await self.remove(service.name)

    async def _keep_beats(self) -> None:
        """Store the times of heartbeats, all of a minute at once."""
        while True:
            await trio.sleep(STORE_SECONDS)
            beaten, self._beaten = self._beaten, set()
            if self._store:
                await self._store.write({name: _row(self.services[name]) for name in beaten if name in self.services})

    async def _save(self, service: ForeignService) -> None:
        self._tell()
        if self._store:
            await self._store.write({service.name: _row(service)})

    def _tell(self) -> None:
        self.changed.set()
        self.changed = trio.Event()


def _row(service: ForeignService) -> Row:
    return Row(service.registration, service.last_heartbeat)
