"""The engine for embeddings: takes prepared requests, computes a batch of inputs a step, says what came out.

1. Inputs go by rank: higher priority first, then who came first. A step computes as many as fit into its budget, padding counted.
2. When a batch breaks its inputs are computed one by one; a request whose input breaks again fails alone. When every one of them
   breaks and none ever worked, `step` raises: only a new process can help.
3. At most `queue` requests wait; one more is `Busy`. Each ends in exactly one terminal event.
"""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING

from mesh.errors import BackendFailed, Busy, MeshError, TimedOut
from mesh.messages.inference import Accepted, Done, Performance, Usage
from mesh.messages.worker import EngineLoad, EngineStats, Step
from mesh.service import fail_of
from node.worker.counters import Counters
from node.worker.device import gpu_stats
from node.worker.engine import cancelled

if TYPE_CHECKING:
    from mesh.messages.inference import Event
    from node.worker.embedding.embedder import Embedder
    from node.worker.embedding.intake import Job

_logger = logging.getLogger(__name__)

BUDGET = 4096
"""Tokens in a batch, padding counted; a single longer input still goes."""
MOST = 64
"""Inputs in a batch."""


class EmbeddingEngine:
    """One model, see the head of this file."""

    def __init__(self, embedder: Embedder, *, queue: int = 256) -> None:
        self.embedder = embedder
        self._queue = queue
        self._jobs: dict[int, Job] = {}
        self._events: list[tuple[int, Event]] = []
        self._counters = Counters()
        self._steps = 0
        self._rate = 0.0

    @property
    def idle(self) -> bool:
        """There is nothing to compute and nothing to tell."""
        return not self._jobs and not self._events

    @property
    def load(self) -> EngineLoad:
        """The counters now. Whoever has vectors already is running."""
        running = sum(1 for job in self._jobs.values() if job.started)
        return EngineLoad(
            step=self._steps, running=running, waiting=len(self._jobs) - running, slots=MOST, prefill_rate=self._rate
        )

    @property
    def stats(self) -> EngineStats:
        """What was done since the start."""
        queue, prefill, _ = self._counters.averages
        load = self.load
        return EngineStats(
            total_requests=self._counters.total,
            completed_requests=self._counters.completed,
            failed_requests=self._counters.failed,
            avg_queue_time_ms=queue,
            avg_prefill_time_ms=prefill,
            queue_size=load.waiting,
            queue_capacity=self._queue,
            concurrent_requests=load.running,
            broken_steps=self._counters.broken_steps,
            gpu=gpu_stats(self.embedder.device),
        )

    def take(self, number: int, prepared: Job | MeshError) -> None:
        """Take a prepared request; the next step tells how it began."""
        self._counters.total += 1
        if isinstance(prepared, MeshError):
            self._fail(number, prepared)
        elif len(self._jobs) >= self._queue:
            self._fail(number, Busy(f"{len(self._jobs)} requests wait for this model already; try again later", retry_after=1.0))
        else:
            self._jobs[number] = prepared
            load = self.load
            self._events.append((number, Accepted(running=load.running, waiting=load.waiting)))

    def abort(self, number: int) -> None:
        """Stop a request; its Fail is in the next step. Unknown numbers are ignored."""
        if self._jobs.pop(number, None) is not None:
            self._fail(number, cancelled())

    def clear(self, error: MeshError) -> None:
        """Fail every request; the next step tells."""
        for job in list(self._jobs.values()):
            self._drop(job, error)

    def rise(self) -> None:
        """Make a vector. Raises whatever goes wrong."""
        self.embedder.embed([[0]], [None])

    def step(self, budget: int = BUDGET) -> Step | None:
        """Compute up to `budget` tokens; None when there was nothing to do. Raises when the model is broken for good."""
        self._expire()
        batch = self._batch(budget)
        if batch:
            self._steps += 1
            self._compute(batch)
        if not batch and not self._events:
            return None
        events, self._events = self._events, []
        return Step(load=self.load, events=events)

    def _expire(self) -> None:
        now = time.monotonic()
        for job in [job for job in self._jobs.values() if job.deadline <= now]:
            self._drop(job, TimedOut("the request's deadline passed", code="deadline_exceeded"))

    def _batch(self, budget: int) -> list[tuple[Job, list[int]]]:
        batch: list[tuple[Job, list[int]]] = []
        longest = 0
        for job in sorted(self._jobs.values(), key=lambda job: job.rank):
            for one in job.left:
                longest = max(longest, len(one))
                if batch and (len(batch) >= MOST or longest * (len(batch) + 1) > budget):
                    return batch
                batch.append((job, one))
        return batch

    def _compute(self, batch: list[tuple[Job, list[int]]]) -> None:
        begun = time.monotonic()
        for job, _ in batch:
            job.started = job.started or begun
            job.largest_batch = max(job.largest_batch, len(batch))
        try:
            vectors = self.embedder.embed([one for _, one in batch], [job.dimensions for job, _ in batch])
        # Whatever broke in there, it must not end the process: others are being served.
        except Exception:
            _logger.exception("a batch of %d inputs broke", len(batch))
            self._isolate(batch)
            return
        for (job, _), vector in zip(batch, vectors, strict=True):
            self._give(job, vector)
        self._rate = sum(len(one) for _, one in batch) / max(time.monotonic() - begun, 1e-9)

    def _isolate(self, batch: list[tuple[Job, list[int]]]) -> None:
        self._counters.broken_steps += 1
        worked = False
        for job, one in batch:
            if job.number not in self._jobs:
                continue
            try:
                (vector,) = self.embedder.embed([one], [job.dimensions])
            # As above; and this time it is clear whose fault it is.
            except Exception:
                _logger.exception("an input of the request with number %d breaks the model", job.number)
                self._drop(job, BackendFailed("the model failed on one of these inputs; see the worker's log"))
            else:
                worked = True
                self._give(job, vector)
        if not worked and not self._counters.completed:
            raise RuntimeError("the model embeds nothing at all")

    def _give(self, job: Job, vector: bytes) -> None:
        job.vectors.append(vector)
        if not job.left:
            del self._jobs[job.number]
            self._events.append((job.number, self._done(job)))

    def _done(self, job: Job) -> Done:
        seconds = time.monotonic() - job.started
        tokens = sum(map(len, job.inputs))
        load = self.load
        performance = Performance(
            prefill_time_ms=1000 * seconds,
            decode_time_ms=0.0,
            queue_time_ms=1000 * (job.started - job.arrived),
            tokens_per_second=tokens / max(seconds, 1e-9),
            batch_size=job.largest_batch,
        )
        self._counters.complete(performance)
        return Done(
            finish_reason="stop",
            usage=Usage(prompt_tokens=tokens, completion_tokens=0),
            performance=performance,
            running=load.running,
            waiting=load.waiting,
            embeddings=job.vectors,
        )

    def _drop(self, job: Job, error: MeshError) -> None:
        del self._jobs[job.number]
        self._fail(job.number, error)

    def _fail(self, number: int, error: MeshError) -> None:
        load = self.load
        self._counters.failed += 1
        self._events.append((number, fail_of(error, running=load.running, waiting=load.waiting)))
