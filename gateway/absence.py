"""Why nobody can serve a model now, and when somebody may: for the client that is told so."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from gateway.routing.snapshot import MAX_WAKE, entry_of, state_of
from mesh.errors import Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.registry import PeerView

RETRY_AFTER = 2.0
"""Seconds that a client is asked to wait where nothing is known."""


def is_loading(views: Iterable[PeerView], model: str) -> bool:
    """True when a node will have the model in a while."""
    return any(_state(view, model) == "loading" for view in views)


def absence(model: str, views: Iterable[PeerView]) -> Unavailable:
    """The error that names how far the nodes of the model are."""
    views = list(views)
    loading = [view for view in views if _state(view, model) == "loading"]
    if not loading:
        states = Counter(_state(view, model) for view in views)
        known = "; its nodes: " + ", ".join(f"{count} {state}" for state, count in sorted(states.items())) if states else ""
        message = f"no node can serve {model!r} right now{known}; try again in {RETRY_AFTER:g} s"
        return Unavailable(message, code="model_unavailable", retry_after=RETRY_AFTER)
    names = ", ".join(view.record.name for view in loading[:3]) + (f" and {len(loading) - 3} more" if len(loading) > 3 else "")
    usual = min((seconds for view in loading if (seconds := _wake(view, model))), default=0.0)
    takes = f", which usually takes {usual:.0f} s" if usual else ""
    retry_after = max(RETRY_AFTER, usual)
    message = f"{model!r} is loading on {names}{takes}; try again in {retry_after:.0f} s"
    return Unavailable(message, code="model_loading", retry_after=retry_after)


def _state(view: PeerView, model: str) -> str:
    entry = entry_of(view, model)
    return "gone" if entry is None else state_of(view, entry)


def _wake(view: PeerView, model: str) -> float:
    entry = entry_of(view, model)
    return entry.wake_seconds if entry is not None and 0 < entry.wake_seconds <= MAX_WAKE else 0.0
