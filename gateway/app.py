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
from gateway.registry_view.routes import RegistryRoutes
from gateway.registry_view.via import GuardedRouter
from gateway.registry_view.view import View
from gateway.routing.demand import asked_demand
from gateway.routing.policies import DEFAULT_POLICY
from gateway.routing.router import Router as NodeRouter
from gateway.streams.pick_up import Streams
from gateway.streams.routes import StreamRoutes
from gateway.topics import Topics
from gateway.websocket import ANONYMOUS, Session
from mesh.errors import BadRequest
from mesh.http import Request, Response, Router, WebSocket, WebSocketResponse
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
        strategy: str = DEFAULT_POLICY,
        limits: DispatchLimits | None = None,
        admission: AdmissionLimits | None = None,
        measuring: Measuring | None = None,
    ) -> None:
        """Raises Misconfigured when there is no strategy of that name."""
        self.registry = registry
        self.dispatch = Dispatch(NodeRouter(registry, strategy=strategy), limits=limits)
        self.service = Admission(self.dispatch, Capacity(self.dispatch.router, self.dispatch.models), limits=admission)
        self.topics = Topics(self.dispatch)
        self.streams = Streams(self.dispatch)
        self._measuring = measuring or Measuring()
        self.foreign = foreign or ForeignServices()
        self.router: Router = GuardedRouter(registry)
        self.registry_router = Router()
        """The nine endpoints of the older registry alone, for a port of their own."""
        self._mount()

    async def run(self) -> None:
        """What goes on beside the requests. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.topics.run)
            nursery.start_soon(self.dispatch.stalls.run)

    def _mount(self) -> None:
        OpenAIRoutes(self.service, self.registry.catalog).mount(self.router)
        StreamRoutes(self.streams, lambda _request: ANONYMOUS).mount(self.router)
        services = RegistryRoutes(View(self.dispatch, self.foreign), self.foreign)
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

        async def handle(socket: WebSocket) -> None:
            await Session(socket, client_id, service=self.service, topics=self.topics, streams=self.streams).run()

        return WebSocketResponse(handle)
