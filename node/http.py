"""The node's HTTP ports: P answers OpenAI, P+1 tells the truth about what runs behind it.

1. A program that answers OpenAI's API itself has P, and the node P+1 alone; else the node has both.
2. P+1's `/health` is 200 only while a model works here, whatever process exists; its level is that of `mesh.health`.
3. Both ports are bound or none is; port 0 means a pair that was free together.
"""

from __future__ import annotations

import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from mesh.errors import Misconfigured, Unavailable
from mesh.http import Request, Response, Router, serve
from mesh.http.keys import Guard, KeyedRouter
from mesh.openai.routes import OpenAIRoutes
from mesh.openai.translate import model_object
from node.multiplexer.control import ControlRoutes
from node.status import node_level, node_report

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mesh.http.keys import Keys
    from mesh.messages.record import ModelState
    from node.backends.base import BackendStatus
    from node.service import NodeService

_ATTEMPTS = 20
"""Pairs that are tried for port 0: another program may take one between the look and the bind."""


@dataclass(frozen=True, kw_only=True)
class Identification:
    """How the node calls itself on P+1. `port` is P."""

    name: str
    host: str
    port: int
    service_type: str


class SupervisorRoutes:
    """`/health`, `/models`, `/info`, `/status` and `/network`."""

    def __init__(self, service: NodeService) -> None:
        self.me: Identification | None = None
        """Set once the ports are bound; nothing is asked before."""
        self.network: Callable[[], dict[str, Any]] = dict
        """How others get to this node."""
        self._service = service

    def mount(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/health", self._health)
        router.add("GET", "/models", self._models)
        router.add("GET", "/v1/models", self._models)
        router.add("GET", "/info", self._info)
        router.add("GET", "/status", self._status)
        router.add("GET", "/network", self._network)

    async def _health(self, _: Request) -> Response:
        me, statuses = self._identification(), self._statuses()
        working = sum(_works(status) for status in statuses)
        body = {
            "status": node_level(self._service),
            "service": me.name,
            "babysitter": "enhanced",
            "backend_running": working > 0,
            "backend_port": me.port,
            "infinilm_server_running": working > 0,
            "infinilm_server_port": me.port,
            "restart_count": sum(status.restarts for status in statuses),
            "last_error": _last_error(statuses),
            "timestamp": time.time(),
        }
        return Response.json(body, status=200 if working else 503)

    async def _models(self, _: Request) -> Response:
        entries = [entry for entry in self._service.entries() if entry.state in ("ready", "asleep")]
        if not entries:
            raise Unavailable("no model of this node is ready; see /health", code="model_loading", retry_after=2)
        return Response.json({"object": "list", "data": [model_object(entry) for entry in entries]})

    async def _info(self, _: Request) -> Response:
        me, statuses = self._identification(), self._statuses()
        body: dict[str, Any] = {
            "name": me.name,
            "host": me.host,
            "port": me.port,
            "url": url_of(me.host, me.port),
            "service_type": me.service_type,
            "infinilm_server_port": me.port,
            "uptime": max((status.uptime for status in statuses), default=0.0),
            "restart_count": sum(status.restarts for status in statuses),
            "pid": next((status.pid for status in statuses if status.pid), None),
            "state": _state(statuses),
            "models": [_describe(model, backend.status()) for model, backend in self._service.backends.items()],
        }
        return Response.json(body)

    async def _status(self, _: Request) -> Response:
        me = self._identification()
        return Response.json(node_report(self._service, url_of(me.host, me.port)))

    async def _network(self, _: Request) -> Response:
        return Response.json(self.network())

    def _statuses(self) -> list[BackendStatus]:
        return [backend.status() for backend in dict.fromkeys(self._service.backends.values())]

    def _identification(self) -> Identification:
        if self.me is None:
            raise Unavailable("the node is starting; try again", retry_after=1)
        return self.me


def _works(status: BackendStatus) -> bool:
    return status.running or status.state == "asleep"


def _state(statuses: Sequence[BackendStatus]) -> ModelState:
    """The best of them: what a request for one of the models would find at best."""
    order: list[ModelState] = ["ready", "asleep", "loading", "failed"]
    return min((status.state for status in statuses), key=order.index, default="loading")


def _last_error(statuses: Sequence[BackendStatus]) -> str | None:
    return next((status.last_error for status in statuses if status.last_error), None)


def _describe(model: str, status: BackendStatus) -> dict[str, Any]:
    return {
        "id": model,
        "state": status.state,
        "pid": status.pid,
        "uptime": status.uptime,
        "restart_count": status.restarts,
        "last_error": status.last_error,
        "worker": _worker(status),
        "metrics": _metrics(status),
    }


def _worker(status: BackendStatus) -> dict[str, Any] | None:
    """How the built-in engine computes the model; None where there is no such engine, or the model is not ready."""
    if status.worker is None:
        return None
    names = ("device", "device_name", "dtype", "weights", "threads", "slots", "parameters", "architecture")
    return {name: getattr(status.worker, name) for name in names}


def _metrics(status: BackendStatus) -> dict[str, Any] | None:
    """The built-in engine's counters under the names of `GET /v1/metrics`, and its pulse; None where there is no such engine."""
    if status.engine is None:
        return None
    counters = msgspec.to_builtins(status.engine.stats)
    return {
        "cache": counters.pop("cache"),
        "gpu": counters.pop("gpu"),
        "engine": counters,
        "pulse": {"step": status.engine.step, "busy_seconds": status.engine.busy_seconds, "heard_seconds_ago": status.heard},
    }


class Ports:
    """The two listeners. `stop` lets what is in flight on P finish, `stopped` says when it has."""

    def __init__(self, service: NodeService, *, supervisor_only: bool = False, keys: Keys | None = None) -> None:
        """`supervisor_only`: P is somebody else's. Without `keys`, nobody is asked for one."""
        self._supervisor_only = supervisor_only
        self.port = 0
        self.stopped = trio.Event()
        self._stopping = trio.Event()
        self._openai, self._supervisor = KeyedRouter(), KeyedRouter()
        if keys is not None:
            self._openai.guard, self._supervisor.guard = Guard(keys), Guard(keys, administrative=True)
        self.routes = SupervisorRoutes(service)
        self.routes.mount(self._supervisor)
        ControlRoutes(lambda: service.backends).mount(self._supervisor)
        OpenAIRoutes(service, service.entries).mount(self._openai)

    def stop(self) -> None:
        """Take no new connection on P. P+1 goes on until it is cancelled."""
        self._stopping.set()

    async def run(self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve both until cancelled; `started(P)` once both are bound. Raises Misconfigured when they cannot be."""
        for attempt in range(1 if port else _ATTEMPTS):
            try:
                await self._run_pair(host, port or free_pair(host), task_status)
            except Misconfigured:
                if port or self.port or attempt == _ATTEMPTS - 1:
                    raise
            else:
                return

    async def _run_pair(self, host: str, port: int, task_status: trio.TaskStatus[int]) -> None:
        openai = (
            self._stopping_only if self._supervisor_only else partial(serve, self._openai, host, port, stopping=self._stopping)
        )
        supervisor = partial(serve, self._supervisor, host, port + 1)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._until_stopped, openai)
                try:
                    await nursery.start(supervisor)
                except Misconfigured as error:
                    raise Misconfigured(
                        f"--port {port} needs {port + 1} as well, for health and info: {error.message}"
                    ) from error
                self.port = port
                task_status.started(port)
        except* Misconfigured as group:
            raise _first(group) from None

    async def _stopping_only(self, *, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await self._stopping.wait()

    async def _until_stopped(self, openai: Any, *, task_status: trio.TaskStatus[int]) -> None:
        await openai(task_status=task_status)
        self.stopped.set()


def url_of(host: str, port: int) -> str:
    """Where a program on this machine finds a port."""
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def free_pair(host: str) -> int:
    """A port P such that P and P+1 are free right now. Raises Misconfigured when none is found."""
    for _ in range(_ATTEMPTS):
        try:
            first = _bound(host, 0)
        except OSError as error:
            raise Misconfigured(f"cannot listen on {host!r}: {error}; give --host an address of this machine") from error
        with first, suppress(OSError, OverflowError):
            port = int(first.getsockname()[1])
            _bound(host, port + 1).close()
            return port
    raise Misconfigured(f"found no two free ports side by side on {host}; give them with --port")


def _bound(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.bind(address)
    except OSError:
        listener.close()
        raise
    return listener


def _first(group: BaseExceptionGroup[Misconfigured]) -> Misconfigured:
    found: BaseException = group
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, Misconfigured)
    return found
