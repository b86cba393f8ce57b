"""Switch policies: when the accelerator goes to another model. Pure functions of a `Scene`.

1. A policy sees values, never live objects or a clock: the same scene always gives the same decision.
2. It is asked when a request comes or ends, when a model has become ready, and when the time that it named is over.
3. It only says whose turn it is. Draining, minimum active time, pins and time limits are the multiplexer's business.
4. While no model is awake there is nothing to weigh: every policy takes whoever waits longest.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated

import msgspec

from mesh.config import Option


class Queue(msgspec.Struct, frozen=True, kw_only=True):
    """A model that requests wait for. Times in seconds."""

    model: str
    waiting: int
    oldest: float
    """How long the first of them has waited."""
    there: float = 0.0
    back: float = 0.0
    """What switching to it takes, and from it to the model that is active now; as measured lately."""


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """All that a policy knows. Times in seconds."""

    models: tuple[str, ...]
    """All of them, in the order of the configuration."""
    queues: tuple[Queue, ...]
    """At least one; longest waiting first. The active model is not among them."""
    active: str | None = None
    active_for: float = 0.0
    """Since it became ready."""
    busy_for: float = 0.0
    """In how much of that it worked on something."""
    idle_for: float = 0.0
    """Since it last worked on something; 0 while it does."""
    in_flight: int = 0
    served: int = 0
    """Requests that it began since it became ready."""


class Knobs(msgspec.Struct, frozen=True, kw_only=True):
    """What can be tuned of the policies."""

    coalesce_window_ms: Annotated[
        Annotated[float, msgspec.Meta(ge=0)],
        Option(help="For cost_aware: others may join the first waiter for so long before anything is weighed."),
    ] = 2000
    amortization_factor: Annotated[
        Annotated[float, msgspec.Meta(ge=0, lt=1)],
        Option(
            help="For cost_aware: the share of the time that must go into work rather than into leaving a model and coming back;"
            " 0 switches at once."
        ),
    ] = 0.5
    max_wait_secs: Annotated[
        Annotated[float, msgspec.Meta(ge=0)],
        Option(
            help="For cost_aware: longest that a waiter is kept for the policy's sake, unless a switch takes longer than that is"
            " worth."
        ),
    ] = 15
    tick_interval_ms: Annotated[Annotated[float, msgspec.Meta(gt=0)], Option(help="For time_slice: how often it looks.")] = 500
    min_quantum_ms: Annotated[
        Annotated[float, msgspec.Meta(ge=0)], Option(help="For time_slice: how long a model stays at least.")
    ] = 2000


class Decision(msgspec.Struct, frozen=True):
    """Switch to `model` now; None = not yet, ask again in `wait` seconds."""

    model: str | None
    wait: float = math.inf


Policy = Callable[[Scene, Knobs], Decision]


def fifo(scene: Scene, _knobs: Knobs) -> Decision:
    """Whoever waits longest, at once."""
    return Decision(scene.queues[0].model)


def cost_aware(scene: Scene, knobs: Knobs) -> Decision:
    """Stay until the work done is worth the way out and back, until it looks as if none came any more, or patience ends."""
    if scene.active is None:
        return fifo(scene, knobs)
    first = scene.queues[0]
    patience = _patience_left(scene, first, knobs)
    target = first if patience <= 0 else max(scene.queues, key=_demand)
    left = min(patience, _work_left(scene, target, knobs), _silence_left(scene, target, knobs))
    left = max(left, knobs.coalesce_window_ms / 1000 - first.oldest)
    return Decision(target.model) if left <= 0 else Decision(None, left)


def time_slice(scene: Scene, knobs: Knobs) -> Decision:
    """In turns: each model stays for its quantum, at least as long as the switch away from it takes."""
    if scene.active is None:
        return fifo(scene, knobs)
    target = _next_in_turn(scene)
    least = knobs.min_quantum_ms / 1000
    quantum = least if scene.in_flight == 0 and scene.idle_for >= least else max(least, target.there + target.back)
    left = quantum - scene.active_for
    tick = knobs.tick_interval_ms / 1000
    return Decision(target.model) if left <= 0 else Decision(None, math.ceil(left / tick) * tick)


def _demand(queue: Queue) -> float:
    return queue.waiting / max(queue.there, 0.001)


def _earned(queue: Queue, knobs: Knobs) -> float:
    """Seconds of work that are worth leaving for this model and coming back."""
    factor = knobs.amortization_factor
    return (queue.there + queue.back) * factor / (1 - factor)


def _work_left(scene: Scene, target: Queue, knobs: Knobs) -> float:
    left = _earned(target, knobs) - scene.busy_for
    return left if scene.in_flight or left <= 0 else math.inf


def _silence_left(scene: Scene, target: Queue, knobs: Knobs) -> float:
    """How much longer to hope for more work: as long as it would be worth it; less the fewer it served and the more wait."""
    if scene.in_flight:
        return math.inf
    return _earned(target, knobs) * min(1.0, scene.served / target.waiting) - scene.idle_for


def _patience_left(scene: Scene, first: Queue, knobs: Knobs) -> float:
    limit = max(knobs.max_wait_secs, _earned(first, knobs))
    # What passed before this model was ready was the switch's fault, not the policy's.
    return limit - min(first.oldest, scene.active_for)


def _next_in_turn(scene: Scene) -> Queue:
    place = {model: number for number, model in enumerate(scene.models)}
    own = place[scene.active or scene.models[0]]
    return min(scene.queues, key=lambda queue: (place[queue.model] - own) % len(place))


DEFAULT_POLICY = "fifo"
POLICIES: dict[str, Policy] = {policy.__name__: policy for policy in (fifo, cost_aware, time_slice)}
