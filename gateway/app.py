"""The gateway put together: peer -> router -> dispatch -> admission -> HTTP and WebSocket routes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from gateway import report
from gateway.admission import Admission, AdmissionLimits
from gateway.capacity import Capacity
from gateway.dispatch import Dispatch, DispatchLimits
from gateway.metrics import MetricsRoutes
from gateway.registry_view.foreign import ForeignServices
from gateway.registry_view.routes import RegistryRoutes, only_local
from gateway.registry_view.via import GuardedRouter
from gateway.registry_view.view import View
from gateway.routing.demand import asked_demand
from gateway.routing.policies import DEFAULT_POLICY
from gateway.routing.router import Router as NodeRouter
from gateway.socket_requests import Asker
from gateway.streams.pick_up import Streams
from gateway.streams.routes import StreamRoutes
from gateway.topics import Topics
from gateway.websocket import Session
from mesh.errors import BadRequest
from mesh.http import Request, Response, WebSocket, WebSocketResponse
from mesh.http.keys import Guard, KeyedRouter, Keys
from mesh.measuring import Measuring
from mesh.openai.routes import OpenAIRoutes

if TYPE_CHECKING:
    from mesh.registry import Registry

MAX_CLIENT_ID = 128


class Gateway:
    """Everything behind the HTTP port of one gateway. `run` must run: it tells the topics, and notices nodes that hang."""

    def __init__(
        self,
        registry: Registry,
        *,
        foreign: ForeignServices | None = None,
        keys: Keys | None = None,
        strategy: str = DEFAULT_POLICY,
        limits: DispatchLimits | None = None,
        admission: AdmissionLimits | None = None,
        measuring: Measuring | None = None,
    ) -> None:
        """Raises Misconfigured when there is no strategy of that name. Without `keys`, nobody is asked for one."""
        self.registry = registry
        self._keys = keys
        self.dispatch = Dispatch(NodeRouter(registry, strategy=strategy), limits=limits)
        self.service = Admission(self.dispatch, Capacity(self.dispatch.router, self.dispatch.models), limits=admission)
        self.topics = Topics(self.dispatch)
        self.streams = Streams(self.dispatch)
        self._measuring = measuring or Measuring()
        self.foreign = foreign or ForeignServices()
        self.router = GuardedRouter(registry)
        self.registry_router = KeyedRouter()
        """The nine endpoints of the older registry alone, for a port of their own."""
        if keys is not None:
            self.router.guard = self.registry_router.guard = Guard(keys)
        self._mount()

    def may_administer(self, request: Request) -> None:
        """Raises Denied unless the caller has an admin key, or, where there are no keys, is on this machine."""
        if self._keys is None:
            only_local(request)
        else:
            self._keys.require(request, "admin")

    async def run(self) -> None:
        """What goes on beside the requests. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.topics.run)
            nursery.start_soon(self.dispatch.stalls.run)

    def _mount(self) -> None:
        OpenAIRoutes(self.service, self.registry.catalog).mount(self.router)
        StreamRoutes(self.streams, lambda request: request.tenant).mount(self.router)
        services = RegistryRoutes(View(self.dispatch, self.foreign), self.foreign, may_write=self.may_administer)
        services.mount(self.router)
        services.mount(self.registry_router)
        MetricsRoutes(self.registry, self._measuring).mount(self.router)
        self.router.add("GET", "/ready", self._ready)
        self.router.add("GET", "/status", self._status)
        self.router.add("GET", "/v1/route", self._route)
        self.router.add("GET", "/v1/mesh/peers", self._peers)
        self.router.add("GET", "/ws/{client_id}", self._websocket)

    async def _ready(self, _request: Request) -> Response:
        found = report.readiness(self.dispatch)
        return Response.json(found, 200 if found["ready"] else 503)

    async def _status(self, _request: Request) -> Response:
        return Response.json({**report.status(self.dispatch), "admission": self.service.report()})

    async def _route(self, request: Request) -> Response:
        model = request.query.get("model")
        if not model:
            raise BadRequest("name the model: GET /v1/route?model=ID", code="missing_model", param="model")
        return Response.json(report.route(self.dispatch, model, asked_demand(request.query)))

    async def _peers(self, _request: Request) -> Response:
        known = len(self.registry.peers)
        return Response.json({"peers": report.peers(self.dispatch), "known": known, "timestamp": report.timestamp()})

    async def _websocket(self, request: Request) -> WebSocketResponse:
        client_id = request.params["client_id"]
        if len(client_id) > MAX_CLIENT_ID:
            raise BadRequest(f"a client id has at most {MAX_CLIENT_ID} characters", code="invalid_client_id")

        asker = Asker(tenant=request.tenant, client=request.client)

        async def handle(socket: WebSocket) -> None:
            session = Session(socket, client_id, service=self.service, topics=self.topics, streams=self.streams, asker=asker)
            await session.run()

        return WebSocketResponse(handle)
