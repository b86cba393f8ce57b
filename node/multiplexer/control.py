"""What an operator can ask of the multiplexer, on P+1: `/control/...`, `/models/load`, `/models/unload` and `/metrics`.

Orders return once they are carried out, or raise why they cannot be; an operator who hangs up takes back an order that waits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeVar

import msgspec
import trio

from mesh.errors import BadRequest, NotFound
from mesh.http import Response
from node.multiplexer.presented import Presented

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from mesh.http import Request, Router
    from node.backends.base import Backend
    from node.multiplexer.multiplexer import Multiplexer


Shape = TypeVar("Shape")


class _OfModel(msgspec.Struct):
    model: str


class _OfMode(msgspec.Struct):
    mode: Literal["auto", "manual"]


class ControlRoutes:
    """`backends` is asked for the node's models at every request; the multiplexer is that of those which have one."""

    def __init__(self, backends: Callable[[], dict[str, Backend]]) -> None:
        self._backends = backends

    def mount(self, router: Router) -> None:
        """Add the routes."""
        router.add("GET", "/control/status", self._status)
        router.add("POST", "/control/mode", self._mode)
        router.add("POST", "/control/pin", self._pin)
        router.add("POST", "/control/unpin", self._unpin)
        router.add("POST", "/control/switch", self._switch)
        router.add("POST", "/control/wake", self._switch)
        router.add("POST", "/control/sleep", self._sleep)
        router.add("POST", "/models/load", self._load)
        router.add("POST", "/models/unload", self._unload)
        router.add("GET", "/metrics", self._metrics)

    async def _status(self, _: Request) -> Response:
        return Response.json(report(self._multiplexer()))

    async def _mode(self, request: Request) -> Response:
        multiplexer, mode = self._multiplexer(), _body(request, _OfMode).mode
        multiplexer.set_mode(mode)
        return Response.json({"message": f"the mode is {mode}", "mode": mode})

    async def _pin(self, request: Request) -> Response:
        model = _body(request, _OfModel).model
        await self._multiplexer().pin(model)
        return Response.json({"message": f"{model} is pinned", "model": model})

    async def _unpin(self, _: Request) -> Response:
        self._multiplexer().set_mode("auto")
        return Response.json({"message": "nothing is pinned", "mode": "auto"})

    async def _switch(self, request: Request) -> Response:
        model = _body(request, _OfModel).model
        await self._multiplexer().switch(model)
        return Response.json({"message": f"{model} is awake", "model": model})

    async def _sleep(self, request: Request) -> Response:
        model = _body(request, _OfModel).model
        await self._multiplexer().sleep(model)
        return Response.json({"message": f"{model} is asleep", "model": model})

    async def _load(self, request: Request) -> Response:
        model, began = _body(request, _OfModel).model, trio.current_time()
        await self._multiplexer().switch(model)
        return Response.json({"model": model, "state": "ready", "seconds": round(trio.current_time() - began, 3)})

    async def _unload(self, request: Request) -> Response:
        model, began = _body(request, _OfModel).model, trio.current_time()
        await self._multiplexer().sleep(model)
        return Response.json({"model": model, "state": "asleep", "seconds": round(trio.current_time() - began, 3)})

    async def _metrics(self, _: Request) -> Response:
        text = "".join(multiplexer.metrics() for multiplexer in self._found())
        return Response(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")

    def _found(self) -> list[Multiplexer]:
        return list(dict.fromkeys(each.multiplexer for each in self._backends().values() if isinstance(each, Presented)))

    def _multiplexer(self) -> Multiplexer:
        found = self._found()
        if not found:
            raise NotFound(
                "the models of this node share no accelerator; start it with --switch-policy or --multiplexer-file",
                code="no_multiplexer",
            )
        return found[0]


def orders_of(backends: Sequence[Backend]) -> Callable[[str, bool], Awaitable[None]] | None:
    """What carries out orders for these models, `awake` or not; None when they share no accelerator."""
    multiplexer = next((backend.multiplexer for backend in backends if isinstance(backend, Presented)), None)
    if multiplexer is None:
        return None

    async def manage(model: str, awake: bool) -> None:
        await (multiplexer.switch(model) if awake else multiplexer.sleep(model))

    return manage


def report(multiplexer: Multiplexer) -> dict[str, Any]:
    """`GET /control/status`."""
    active, switching = multiplexer.active, multiplexer.switching
    return {
        "state": _state(multiplexer),
        "active_model": active.model if active is not None and switching is None else None,
        "awake": [member.model for member in multiplexer.accelerator.awake],
        "memory_budget": multiplexer.accelerator.budget,
        "switching": {"from": switching[0], "to": switching[1]} if switching is not None else None,
        "mode": multiplexer.mode,
        "pinned": multiplexer.pinned,
        "models": {
            model: {
                "state": "ready" if member.line.is_open else "failed" if member.barred else "asleep",
                "in_flight": member.in_flight,
                "queue_depth": len(member.line),
                "last_error": member.last_error,
                "retry_seconds": round(member.barred, 1),
                "memory": member.memory,
                "note": member.backend.status().note,
            }
            for model, member in multiplexer.members.items()
        },
        "costs": [
            {"from": one, "to": other, "seconds": round(seconds, 3)}
            for (one, other), seconds in multiplexer.costs.averages.items()
        ],
    }


def _state(multiplexer: Multiplexer) -> str:
    if multiplexer.switching is not None:
        return f"switching:{multiplexer.switching[0] or 'none'}->{multiplexer.switching[1] or 'none'}"
    return f"active:{multiplexer.active.model}" if multiplexer.active is not None else "idle"


def _body(request: Request, shape: type[Shape]) -> Shape:
    try:
        return msgspec.json.decode(request.body, type=shape)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"the body is wrong: {error}") from error
