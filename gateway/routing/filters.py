"""Who may take a request at all, before any policy puts them in an order; and why the others may not.

1. A filter says no for a reason that an operator can read.
2. A hint never leaves nobody: when no served context is long enough by our count, all stay, and the node decides.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from gateway.routing.snapshot import ROUTABLE, entry_of, state_of
from mesh.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Iterable

    from gateway.routing.demand import Demand
    from mesh.messages.inference import Task
    from mesh.messages.record import ModelEntry
    from mesh.registry import PeerView

EMBEDDING_TASKS = frozenset(("embedding", "text-embedding", "feature-extraction", "rerank"))
WHOLE = ("prefill", "decode")
"""The roles of a node that answers a request by itself."""


@dataclass(frozen=True)
class PassedOver:
    """A node that serves the model and may not take this request."""

    view: PeerView
    reason: str


def tasks_of(entry: ModelEntry) -> list[str]:
    """What a model is for, as its node names it."""
    return entry.capabilities.tasks or [entry.task]


def does(entry: ModelEntry, task: Task) -> bool:
    """Whether a model is for such requests. Nodes name tasks as they like; what is no embedding is text."""
    if task == "embedding":
        return not EMBEDDING_TASKS.isdisjoint(tasks_of(entry))
    return not EMBEDDING_TASKS.issuperset(tasks_of(entry))


def refuse_task(views: Iterable[PeerView], model: str, task: Task) -> None:
    """Raises BadRequest when some serve the model, and none of them for such requests."""
    entries = [entry for view in views if (entry := entry_of(view, model)) is not None]
    if entries and not any(does(entry, task) for entry in entries):
        named = sorted({name for entry in entries for name in tasks_of(entry)})
        way = "send it to /v1/embeddings" if task != "embedding" else "choose another model for embeddings"
        raise BadRequest(f"{model} is for {' and '.join(named)}, not for {task}; {way}", code="unsupported_task", param="model")


def sieve(views: Iterable[PeerView], model: str, demand: Demand) -> tuple[list[PeerView], list[PassedOver]]:
    """Those that may take the request, and those that may not with the reason."""
    kept: list[tuple[PeerView, ModelEntry]] = []
    passed: list[PassedOver] = []
    for view in views:
        entry = entry_of(view, model)
        if entry is None:
            continue
        if (reason := objection(view, entry, demand)) is not None:
            passed.append(PassedOver(view, reason))
        else:
            kept.append((view, entry))
    # Inputs to embed stand in one context each; the node tells when one of them is too long.
    needed = 0 if demand.task == "embedding" else demand.prompt_tokens
    roomy = [view for view, entry in kept if entry.context_length <= 0 or needed <= entry.context_length]
    if not roomy:
        return [view for view, _ in kept], passed
    passed += [
        PassedOver(view, f"the prompt has about {demand.prompt_tokens} tokens, and it serves {entry.context_length}")
        for view, entry in kept
        if view not in roomy
    ]
    return roomy, passed


def objection(view: PeerView, entry: ModelEntry, demand: Demand) -> str | None:
    """Why this node may not take such a request now; None when it may."""
    state = state_of(view, entry)
    if view.link is None or view.link.closed.is_set():
        return "there is no link to it"
    if view.link.leaving:
        return "it is leaving the mesh"
    if state not in ROUTABLE:
        return f"its model is {state}"
    if not does(entry, demand.task):
        return f"its model is for {' and '.join(tasks_of(entry))}, the request is for {demand.task}"
    if demand.behind_text and not entry.capabilities.continues:
        return "it cannot go on with an answer of which only the text is known"
    if not all(role in entry.roles for role in WHOLE):
        return f"it only does {' and '.join(entry.roles) or 'nothing'}"
    return None
