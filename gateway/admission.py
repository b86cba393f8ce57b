"""Admission: who may begin now, who waits, and who is told at once to come back later.

1. For each model as many requests are under way as its nodes can compute, and a few more; the others wait here, in a `FairLine`.
2. While anybody waits for a model, something of it is under way: whoever leaves calls the next. While no node can take it, nobody
   waits here: dispatch knows how long to wait for a node and what to say.
3. What cannot begin within `wait` seconds, by the rate at which requests end now, is refused on arrival, never after a wait. So
   is one whose deadline the prediction cannot meet; one in `LOOK_AGAIN` seconds is let through to see whether that is still so.
4. A place is left when its client leaves. One request id is under way once.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import trio

from gateway.waiting import FairLine, FullLine, Place
from mesh.errors import Busy, Conflict, MeshError, TimedOut

if TYPE_CHECKING:
    from gateway.capacity import Room
    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit, InferenceService

_E = TypeVar("_E", bound=MeshError)

SMOOTHING = 0.05
"""Weight of a new request's time in the average."""
MAX_RETRY_AFTER = 60.0
STUCK = 2.0
"""Nobody waits longer than so many times `wait`: only where the nodes became much slower meanwhile."""
LOOK_AGAIN = 5.0
MAX_LANES = 1024
"""Models that are remembered while nobody asks for them."""


@dataclass(frozen=True, kw_only=True)
class AdmissionLimits:
    """Bounds of all requests together; times in seconds."""

    requests: int = 1024
    """Under way or waiting, of all models."""
    waiting: int = 512
    """For one model."""
    tenant_waiting: int = 256
    """Of one tenant, for one model."""
    wait: float = 30.0
    """Who would have to wait longer, as it looks on arrival, is refused."""


class Lane:
    """One model: what is under way, who waits, and how long a request takes from beginning to end."""

    def __init__(self, limits: AdmissionLimits) -> None:
        self.line = FairLine(limit=limits.waiting, tenant_limit=limits.tenant_waiting)
        self.under_way = 0
        self.mean: float | None = None
        self._look_at = math.inf

    def begin(self, place: Place) -> None:
        """Let it in."""
        self.under_way += 1
        place.state, place.since = "in", trio.current_time()
        place.called.set()

    def end(self, place: Place) -> None:
        """It is through."""
        self.under_way -= 1
        place.state = "gone"
        took = trio.current_time() - place.since
        self.mean = took if self.mean is None else self.mean + SMOOTHING * (took - self.mean)

    def looks_again(self) -> bool:
        """True once in `LOOK_AGAIN` seconds, counted from the first call."""
        now = trio.current_time()
        due = now >= self._look_at
        if due or self._look_at == math.inf:
            self._look_at = now + LOOK_AGAIN
        return due

    def wait(self, ahead: int, room: int) -> float:
        """Seconds until `ahead` requests and one more have begun: as many end in `mean` seconds as there is room for."""
        return 0.0 if self.mean is None or room <= 0 else (ahead + 1) * self.mean / room


class Admission:
    """An inference service in front of another one. See the head of this file."""

    def __init__(self, service: InferenceService, room: Room, *, limits: AdmissionLimits | None = None) -> None:
        self._service = service
        self._room = room
        self._limits = limits or AdmissionLimits()
        self._lanes: dict[str, Lane] = {}
        self._ids: set[str] = set()
        self.refused: Counter[str] = Counter()
        """By the error's code."""
        room.changed(self._call_all)

    @property
    def in_flight(self) -> int:
        """Requests under way or waiting."""
        return len(self._ids)

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Pass the request on as soon as there is room. Raises Busy, TimedOut and Conflict, besides what the service raises."""
        model = self._room.resolve(request.model)
        request = msgspec.structs.replace(request, model=model)
        lane = self._lane(model)
        place = Place(tenant=request.tenant, priority=request.priority)
        self._enter(request, lane)
        try:
            request = await self._begin(request, lane, place)
            await self._service.infer(request, emit)
        finally:
            self._ids.discard(request.request_id)
            self._leave(lane, place, model)

    def report(self) -> dict[str, Any]:
        """For the status report."""
        busy = {model: lane for model, lane in self._lanes.items() if lane.under_way or lane.line}
        return {
            "in_flight": self.in_flight,
            "waiting": sum(len(lane.line) for lane in busy.values()),
            "refused": dict(self.refused),
            "models": {
                model: {
                    "under_way": lane.under_way,
                    "room": self._room.of(model),
                    "waiting": len(lane.line),
                    "tenants_waiting": lane.line.tenants,
                    "mean_seconds": None if lane.mean is None else round(lane.mean, 6),
                }
                for model, lane in sorted(busy.items())
            },
        }

    def _lane(self, model: str) -> Lane:
        if model not in self._lanes and len(self._lanes) >= MAX_LANES:
            self._lanes = {name: lane for name, lane in self._lanes.items() if lane.under_way or lane.line}
        return self._lanes.setdefault(model, Lane(self._limits))

    def _enter(self, request: InferenceRequest, lane: Lane) -> None:
        if request.request_id in self._ids:
            message = f"a request {request.request_id!r} is under way already; give each request an id of its own"
            raise self._refusal(Conflict(message, code="request_id_in_use"))
        if len(self._ids) >= self._limits.requests:
            what = f"this gateway has {self._limits.requests} requests under way, its limit"
            raise self._busy(what, "gateway_full", self._retry_after(lane, request))
        self._ids.add(request.request_id)

    async def _begin(self, request: InferenceRequest, lane: Lane, place: Place) -> InferenceRequest:
        """Returns once there is room: the request with what is left of its time."""
        room = self._room.of(request.model)
        if room == 0 and lane.under_way >= self._limits.waiting:
            what = f"{lane.under_way} requests wait for {request.model!r} already, which no node can serve now"
            raise self._busy(what, "queue_full", self._retry_after(lane, request))
        self._check_deadline(request, lane, room)
        if room == 0 or (lane.under_way < room and not lane.line):
            lane.begin(place)
            return request
        started = trio.current_time()
        await self._wait(request, lane, place, room)
        return _after(request, trio.current_time() - started)

    async def _wait(self, request: InferenceRequest, lane: Lane, place: Place, room: int) -> None:
        expected = lane.wait(lane.line.ahead(place.tenant), room)
        if expected > self._limits.wait:
            what = f"{request.model!r} has so many requests waiting that this one would begin in {expected:.0f} s"
            raise self._busy(what, "queue_full", self._retry_after(lane, request))
        place.cost = self._room.cost(request)
        try:
            out = lane.line.push(place)
        except FullLine:
            what = f"{len(lane.line)} requests wait for {request.model!r} already"
            raise self._busy(what, "queue_full", self._retry_after(lane, request)) from None
        if out is not None:
            what = f"{request.model!r} has too many requests waiting, and this one made room for a fairer share"
            out.refuse(self._busy(what, "queue_full", self._retry_after(lane, request)))
        limit = STUCK * self._limits.wait
        if request.deadline_ms is not None:
            limit = min(limit, request.deadline_ms / 1000)
        with trio.move_on_after(limit):
            await place.called.wait()
        if place.refusal is not None:
            raise place.refusal
        if place.state != "in":
            raise self._late(request, lane, limit)

    def _late(self, request: InferenceRequest, lane: Lane, limit: float) -> MeshError:
        if request.deadline_ms is not None and limit * 1000 >= request.deadline_ms:
            message = f"the request waited for {request.model!r} until its deadline of {limit:g} s had passed; try again later"
            return self._refusal(TimedOut(message, code="request_timeout"))
        return self._busy(f"{request.model!r} had no room within {limit:g} s", "queue_timeout", self._retry_after(lane, request))

    def _check_deadline(self, request: InferenceRequest, lane: Lane, room: int) -> None:
        if request.deadline_ms is None or room == 0:
            return
        takes = self._room.seconds(request)
        if takes is None:
            return
        waits = lane.line or lane.under_way >= room
        wait = lane.wait(lane.line.ahead(request.tenant), room) if waits else 0.0
        if (wait + takes) * 1000 <= request.deadline_ms or lane.looks_again():
            return
        message = (
            f"the request would end in about {wait + takes:.1f} s, after its deadline of {request.deadline_ms / 1000:g} s; "
            "allow more time or fewer tokens"
        )
        raise self._refusal(TimedOut(message, code="deadline_too_early", retry_after=max(1.0, wait) if wait else None))

    def _leave(self, lane: Lane, place: Place, model: str) -> None:
        if place.state == "waiting":
            lane.line.remove(place)
        elif place.state == "in":
            lane.end(place)
            self._call(model, lane)

    def _call(self, model: str, lane: Lane) -> None:
        """Let in as many as there is room for."""
        room = self._room.of(model) if lane.line else 0
        while lane.line and (room == 0 or lane.under_way < room):
            lane.begin(lane.line.pop())

    def _call_all(self) -> None:
        for model, lane in self._lanes.items():
            self._call(model, lane)

    def _retry_after(self, lane: Lane, request: InferenceRequest) -> float:
        """When what waits now will have begun."""
        return min(max(1.0, lane.wait(lane.line.ahead(request.tenant), self._room.of(request.model))), MAX_RETRY_AFTER)

    def _busy(self, what: str, code: str, retry_after: float) -> Busy:
        message = f"{what}; try again in {math.ceil(retry_after)} s"
        return self._refusal(Busy(message, code=code, retry_after=retry_after))

    def _refusal(self, error: _E) -> _E:
        self.refused[error.code] += 1
        return error


def _after(request: InferenceRequest, seconds: float) -> InferenceRequest:
    if request.deadline_ms is None:
        return request
    return msgspec.structs.replace(request, deadline_ms=max(1, round(request.deadline_ms - seconds * 1000)))
