"""The topics of the WebSocket: what subscribers are told, and when.

1. A subscriber first gets one `snapshot` of the topic, then its events in order. It is told nothing that it did not subscribe to.
2. An event is encoded once, however many are subscribed; telling a subscriber queues and never blocks.
3. The topic `inference` tells of requests of the subscriber's own tenant, and never what they said.
4. `queue` and `metrics` are looked at once in `QUEUE_SECONDS` and `SAMPLE_SECONDS`, and only while somebody is subscribed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from gateway import report
from gateway.routing.snapshot import state_of
from mesh.errors import BadRequest

if TYPE_CHECKING:
    from gateway.dispatch import Dispatch, Notice
    from mesh.messages.record import ModelState
    from mesh.registry import PeerView, RegistryEvent

QUEUE_SECONDS = 1.0
SAMPLE_SECONDS = 5.0

Send = Callable[[str], None]
Json = dict[str, Any]


@dataclass(frozen=True, eq=False)
class _Subscriber:
    send: Send
    tenant: str


class Topics:
    """All topics of one gateway. `run` must be running for `queue` and `metrics` to say anything after the snapshot."""

    def __init__(self, dispatch: Dispatch) -> None:
        self._dispatch = dispatch
        self._snapshots: dict[str, Callable[[str], Any]] = {
            "inference": self._in_flight,
            "status": lambda _: report.status(dispatch),
            "backend": lambda _: report.status(dispatch)["backends"],
            "queue": lambda _: report.queues(dispatch),
            "metrics": lambda _: report.sample(dispatch.totals),
            "node": lambda _: [report.peer(view) for view in report.node_views(dispatch)],
        }
        self._subscribers: dict[str, list[_Subscriber]] = {topic: [] for topic in self._snapshots}
        self._running: dict[str, Notice] = {}
        self._states: dict[tuple[str, str], ModelState] = {}
        self._depths: list[Json] = []
        dispatch.listeners.append(self._on_inference)
        dispatch.router.registry.subscribe(self._on_registry)

    @property
    def known(self) -> list[str]:
        """The names of all topics."""
        return sorted(self._snapshots)

    def check(self, topics: list[str]) -> None:
        """Raises BadRequest for the first unknown topic, naming the known ones."""
        for topic in topics:
            if topic not in self._snapshots:
                raise BadRequest(f"unknown topic {topic[:64]!r}; the topics are {', '.join(self.known)}", code="unknown_topic")

    def status(self) -> Json:
        """The status report, for those who ask on the socket."""
        return report.status(self._dispatch)

    def subscribe(self, topic: str, send: Send, *, tenant: str) -> Callable[[], None]:
        """Send the snapshot now and every event from now on. Returns what ends it."""
        send(_encoded(topic, "snapshot", self._snapshots[topic](tenant)))
        subscriber = _Subscriber(send, tenant)
        self._subscribers[topic].append(subscriber)
        return lambda: self._subscribers[topic].remove(subscriber)

    async def run(self) -> None:
        """Look at queues and counters. Runs until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_queues)
            nursery.start_soon(self._sample)

    def _publish(self, topic: str, event: str, data: Any, *, tenant: str | None = None) -> None:
        listening = [one for one in self._subscribers[topic] if tenant is None or one.tenant == tenant]
        if not listening:
            return
        text = _encoded(topic, event, data)
        for subscriber in listening:
            subscriber.send(text)

    def _in_flight(self, tenant: str) -> Json:
        mine = [notice for notice in self._running.values() if notice.request.tenant == tenant]
        return {"in_flight": len(mine), "requests": [_request(notice) for notice in mine]}

    def _on_inference(self, notice: Notice) -> None:
        if notice.event == "started":
            self._running[notice.request.request_id] = notice
        else:
            self._running.pop(notice.request.request_id, None)
        self._publish("inference", notice.event, _request(notice), tenant=notice.request.tenant)

    def _on_registry(self, event: RegistryEvent) -> None:
        view = event.peer
        if not view.serves:
            return
        self._publish("node", event.kind, report.peer(view))
        self._tell_states(view, gone=event.kind == "left")
        summary = report.backend(view, self._dispatch)
        # A node that left may still be seen with its old link; whoever listens must read that it is gone.
        level = "offline" if event.kind == "left" else summary["status"]
        self._publish("status", "service_changed", {"change": event.kind, "service": {**summary, "status": level}})

    def _tell_states(self, view: PeerView, *, gone: bool) -> None:
        """One `state_changed` for each model whose state is not what it was."""
        node = view.record.peer_id
        now = {} if gone else {(node, entry.id): state_of(view, entry) for entry in view.record.models}
        before = {key: state for key, state in self._states.items() if key[0] == node}
        for key in sorted(before.keys() | now.keys()):
            if before.get(key) != now.get(key):
                change = {"node": node, "name": view.record.name, "model": key[1]}
                self._publish("backend", "state_changed", {**change, "state": now.get(key, "gone"), "before": before.get(key)})
        for key in before:
            del self._states[key]
        self._states.update(now)

    async def _watch_queues(self) -> None:
        while True:
            await trio.sleep(QUEUE_SECONDS)
            if self._subscribers["queue"] and (depths := report.queues(self._dispatch)) != self._depths:
                self._depths = depths
                self._publish("queue", "depth", depths)

    async def _sample(self) -> None:
        while True:
            await trio.sleep(SAMPLE_SECONDS)
            self._publish("metrics", "sample", report.sample(self._dispatch.totals))


def _request(notice: Notice) -> Json:
    request, delivery = notice.request, notice.delivery
    return {
        "request_id": request.request_id,
        "model": request.model,
        "task": request.task,
        "node": delivery.node,
        "attempts": delivery.attempts,
        "outcome": notice.outcome,
        "duration_ms": round(notice.seconds * 1000, 3),
        "completion_tokens": delivery.tokens,
    }


def _encoded(topic: str, event: str, data: Any) -> str:
    message = {"type": "event", "topic": topic, "event": event, "data": data, "timestamp": report.timestamp()}
    return msgspec.json.encode(message).decode()
