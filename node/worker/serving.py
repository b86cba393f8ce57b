"""What the worker's main thread drives: an engine for text, one for embeddings, or both over one model.

1. Both compute in the one thread. While text is being generated an embedding batch is small: whoever reads along waits for it.
2. A request belongs to the engine that its preparation says; an error belongs to whichever there is.
3. While the model dozes it computes nothing: its requests were failed, and one that still comes is refused.
"""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Protocol

import msgspec

from mesh.errors import BadRequest, MeshError, Unavailable
from mesh.messages.worker import EngineLoad, EngineStats, Step
from node.worker.embedding.engine import BUDGET
from node.worker.embedding.intake import Job
from node.worker.intake import Prepared

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from node.worker.embedding.engine import EmbeddingEngine
    from node.worker.embedding.intake import EmbeddingIntake
    from node.worker.engine import Engine
    from node.worker.intake import Intake
    from node.worker.weights import Weights

SMALL_BUDGET = 512
"""Tokens in an embedding batch beside sequences that generate."""


class Computing(Protocol):
    """What can be told of anything that computes."""

    @property
    def idle(self) -> bool: ...

    @property
    def load(self) -> EngineLoad: ...

    @property
    def stats(self) -> EngineStats: ...


class Serving:
    """At least one of the two engines."""

    def __init__(
        self,
        text: Engine | None,
        embedding: EmbeddingEngine | None,
        intake: ServingIntake,
        *,
        queue: int,
        weights: Weights,
    ) -> None:
        assert text or embedding
        self.weights = weights
        self.dozing = False
        self.intake = intake
        self.queue = queue
        self._text = text
        self._embedding = embedding
        self._freed = 0

    @property
    def idle(self) -> bool:
        """There is nothing to compute and nothing to tell."""
        return (self._text is None or self._text.idle) and (self._embedding is None or self._embedding.idle)

    @property
    def load(self) -> EngineLoad:
        """The counters now: the text engine's, with what runs and waits to be embedded."""
        if self._text is None or self._embedding is None:
            return self._only.load
        load, beside = self._text.load, self._embedding.load
        return msgspec.structs.replace(
            load, step=load.step + beside.step, running=load.running + beside.running, waiting=load.waiting + beside.waiting
        )

    @property
    def stats(self) -> EngineStats:
        """What was done since the start; times are those of the text engine where there is one."""
        if self._text is None or self._embedding is None:
            return self._only.stats
        stats, beside = self._text.stats, self._embedding.stats
        return msgspec.structs.replace(
            stats,
            total_requests=stats.total_requests + beside.total_requests,
            completed_requests=stats.completed_requests + beside.completed_requests,
            failed_requests=stats.failed_requests + beside.failed_requests,
            queue_size=stats.queue_size + beside.queue_size,
            concurrent_requests=stats.concurrent_requests + beside.concurrent_requests,
            broken_steps=stats.broken_steps + beside.broken_steps,
        )

    def take(self, prepared: Prepared) -> None:
        """Take a prepared request; the next step tells how it began."""
        if self.dozing:
            prepared = Prepared(prepared.number, asleep())
        result = prepared.result
        if self._embedding is not None and (isinstance(result, Job) or self._text is None):
            assert isinstance(result, Job | MeshError)
            self._embedding.take(prepared.number, result)
        else:
            assert self._text is not None
            self._text.take(prepared)

    def abort(self, number: int) -> None:
        """Stop a request. Unknown numbers are ignored: it may just have ended."""
        for engine in (self._text, self._embedding):
            if engine is not None:
                engine.abort(number)

    def step(self) -> Step | None:
        """Compute once; None when there was nothing to do. Raises when the model is broken for good."""
        text = self._text.step() if self._text is not None else None
        if self._embedding is None:
            return text
        embedding = self._embedding.step(BUDGET if text is None else SMALL_BUDGET)
        events = [event for step in (text, embedding) if step is not None for event in step.events]
        return Step(load=self.load, events=events) if text or embedding else None

    def clear(self) -> None:
        """Fail every request because the model falls asleep; the next step tells."""
        for engine in (self._text, self._embedding):
            if engine is not None:
                engine.clear(asleep())

    def doze(self) -> str:
        """Give the device's memory back, after `clear` and a step; what was given back and what not. Idempotent."""
        if not self.dozing:
            self.dozing = True
            self._freed = self._text.rest() if self._text is not None else 0
            self.weights.to_host()
        kept = (
            "the weights are in the host's memory" if self.weights.moves else "the weights stay, for they are in use as they are"
        )
        return f"{self._freed >> 20} MiB of keys and values given back; {kept}"

    def rise(self) -> None:
        """Be ready again: a token, or a vector, was produced. Raises whatever goes wrong; then it dozes on. Idempotent."""
        if not self.dozing:
            return
        try:
            self.weights.to_device()
            if self._text is not None:
                self._text.rise()
            elif self._embedding is not None:
                self._embedding.rise()
        except Exception:
            if self._text is not None:
                self._text.rest()
            self.weights.to_host()
            raise
        self.dozing = False

    @property
    def _only(self) -> Computing:
        only = self._text or self._embedding
        assert only is not None
        return only


def asleep() -> Unavailable:
    """What a request is told that meets a model that dozes."""
    return Unavailable("the model was put to sleep; send the request again", code="model_asleep", retry_after=2)


class ServingIntake:
    """Prepares requests for either engine, in one thread at a time."""

    def __init__(self, text: Intake | None, embedding: EmbeddingIntake | None) -> None:
        self._text = text
        self._embedding = embedding

    def beside(self, lane: str) -> ServingIntake:
        """The same for another thread."""
        return ServingIntake(self._text and self._text.beside(lane), copy.deepcopy(self._embedding))

    def is_quick(self, request: InferenceRequest) -> bool:
        """Nothing has to be compiled for it."""
        return self._text is None or request.task == "embedding" or self._text.is_quick(request)

    def prepare(self, number: int, request: InferenceRequest, *, arrived: float | None = None) -> Prepared:
        """Check and tokenise a request. Never raises. `arrived`: monotonic seconds, now when left out."""
        arrived = time.monotonic() if arrived is None else arrived
        if self._embedding is not None and (self._text is None or request.task == "embedding"):
            return Prepared(number, self._embedding.prepare(number, request, arrived))
        if self._text is None:
            return Prepared(number, BadRequest("this model does nothing", code="unsupported_task", param="model"))
        return self._text.prepare(number, request, arrived=arrived)
