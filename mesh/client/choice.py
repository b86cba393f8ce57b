"""Which node a client asks first. Pure: the same offers always give the same order.

A model that is awake before one that sleeps; a free slot before a full node; then the nearer, then the idler one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.identity import PeerId
    from mesh.messages.record import ModelEntry, ModelState
    from mesh.registry import PeerView

USABLE: frozenset[ModelState] = frozenset(("ready", "asleep"))
_UNKNOWN_RTT = 1.0
_STEP = 0.01
"""Seconds of round trip that make no difference."""


@dataclass(frozen=True, kw_only=True)
class Offer:
    """One node that could answer. `busy`: requests that run or wait there; `rtt` in seconds."""

    peer_id: PeerId
    state: ModelState = "ready"
    busy: int = 0
    slots: int = 1
    rtt: float | None = None


def best_first(offers: Iterable[Offer]) -> list[Offer]:
    """The order in which to ask."""
    return sorted(offers, key=_rank)


def _rank(offer: Offer) -> tuple[bool, int, int, float, PeerId]:
    slots = max(1, offer.slots)
    rtt = _UNKNOWN_RTT if offer.rtt is None else offer.rtt
    return offer.state != "ready", offer.busy // slots, round(rtt / _STEP), offer.busy / slots, offer.peer_id


def offer_of(view: PeerView, model: str, task: str) -> Offer | None:
    """What a linked node offers for a request; None when it cannot take it now."""
    entry = entry_of(view, model)
    if entry is None or view.link is None or not view.live or not _does(entry, task) or entry.state not in USABLE:
        return None
    load = view.link.load.get(entry.id)
    # The last heartbeat may be older than what we sent since.
    busy = max(load.running + load.waiting if load else 0, view.link.in_flight)
    return Offer(peer_id=view.peer_id, state=entry.state, busy=busy, slots=load.slots if load else 1, rtt=view.link.rtt)


def entry_of(view: PeerView, model: str) -> ModelEntry | None:
    """The node's entry for a model: by its id, or else by an alias."""
    entries = view.models
    by_id = (entry for entry in entries if entry.id == model)
    return next(by_id, None) or next((entry for entry in entries if model in entry.aliases), None)


def _does(entry: ModelEntry, task: str) -> bool:
    tasks = entry.capabilities.tasks
    return not tasks or task in tasks
