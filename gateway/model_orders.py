"""`POST /models/load` and `/models/unload`: models of nodes that share an accelerator, woken and put to sleep over the links.

1. Loading is done by one node, the named one or that which wakes soonest; unloading by the named one, or all that have it.
2. With `stream` the progress of each node is told every second, as server-sent events, and how it ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import trio

from gateway.routing.snapshot import entry_of
from mesh.errors import BadRequest, MeshError, NotFound, Unavailable
from mesh.http import Response, StreamingResponse
from mesh.http.errors import error_body
from mesh.link import Link
from mesh.managing import FEATURE

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.http import Request, Router, StreamWriter
    from mesh.managing import Managing
    from mesh.registry import PeerView, Registry


class _Order(msgspec.Struct):
    model: str
    node: str = ""
    """A peer id or a name; empty: any that has the model."""
    stream: bool = False


class ModelOrders:
    """The two routes. `may_administer` raises Denied."""

    def __init__(self, registry: Registry, managing: Managing, *, may_administer: Callable[[Request], None]) -> None:
        self._registry = registry
        self._managing = managing
        self._may_administer = may_administer

    def mount(self, router: Router) -> None:
        """Add the routes."""
        router.add("POST", "/models/load", self._load)
        router.add("POST", "/models/unload", self._unload)

    async def _load(self, request: Request) -> Response | StreamingResponse:
        return await self._answer(request, awake=True)

    async def _unload(self, request: Request) -> Response | StreamingResponse:
        return await self._answer(request, awake=False)

    async def _answer(self, request: Request, *, awake: bool) -> Response | StreamingResponse:
        self._may_administer(request)
        order = _read(request)
        views = self._nodes(order)[: 1 if awake else None]
        if not order.stream:
            return Response.json(await self._carry_out(order, views, awake, lambda _: None))

        async def produce(writer: StreamWriter) -> None:
            def tell(event: dict[str, Any]) -> None:
                writer.write(b"data: " + msgspec.json.encode(event) + b"\n\n")

            try:
                tell(await self._carry_out(order, views, awake, tell))
            except MeshError as error:
                tell(error_body(error))

        return StreamingResponse(produce)

    def _nodes(self, order: _Order) -> list[PeerView]:
        """Who can do it, soonest first. Raises NotFound and Unavailable."""
        having = self._registry.nodes(order.model)
        if not having:
            raise NotFound(f"no node that is here has the model {order.model[:200]!r}", code="model_not_found", param="model")
        named = [view for view in having if order.node in ("", view.peer_id, view.record.name)]
        if not named:
            raise NotFound(f"no node called {order.node[:200]!r} has {order.model}", code="node_not_found", param="node")
        able = [view for view in named if isinstance(view.link, Link) and FEATURE in view.link.hello.features]
        if not able:
            raise Unavailable(
                f"{order.model} does not share an accelerator on any of its nodes: it is always loaded", code="not_supported"
            )
        return sorted(able, key=lambda view: _wake_seconds(view, order.model))

    async def _carry_out(
        self, order: _Order, views: list[PeerView], awake: bool, tell: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Ask all of them at once. Raises the first error when nobody succeeded."""
        done: list[dict[str, Any]] = []
        errors: list[MeshError] = []

        async def one(view: PeerView) -> None:
            assert isinstance(view.link, Link)
            about = {"node": view.record.name, "peer_id": view.peer_id}
            try:
                seconds = await self._managing.ask(
                    view.link,
                    order.model,
                    awake=awake,
                    progress=lambda seconds: tell({**about, "state": "working", "seconds": seconds}),
                )
            except MeshError as error:
                errors.append(error)
                tell({**about, "state": "failed", "message": error.message})
            else:
                done.append({**about, "seconds": seconds})

        async with trio.open_nursery() as nursery:
            for view in views:
                nursery.start_soon(one, view)
        if not done:
            raise errors[0]
        return {"model": order.model, "state": "ready" if awake else "asleep", "nodes": done}


def _wake_seconds(view: PeerView, model: str) -> float:
    entry = entry_of(view, model)
    if entry is None or view.link is None:
        return float("inf")
    load = view.link.load.get(model)
    return 0.0 if load is not None and load.state == "ready" else entry.wake_seconds


def _read(request: Request) -> _Order:
    try:
        return msgspec.json.decode(request.body, type=_Order)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is wrong: {error}") from error
