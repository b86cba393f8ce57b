"""Requests are prepared beside the engine: templates and tokenizers take milliseconds, or seconds for a very long prompt.

1. There are two lanes with a thread and a tokenizer each: what is large, or has a grammar to compile, may take its time and holds
   up only what is so too.
2. A lane takes `limit` requests; one more is `Busy` at once.
3. A request that is aborted on its way is answered at once and dropped when it comes out.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from mesh.errors import Busy
from node.worker.engine import cancelled
from node.worker.intake import Prepared

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.messages.inference import InferenceRequest

SMALL = 32 * 1024
"""Characters, or token ids, that a request of the quick lane holds at most."""


class Preparing(Protocol):
    """What prepares requests; see `node.worker.intake.Intake`."""

    def beside(self, lane: str) -> Preparing:
        """The same for another thread."""
        ...

    def is_quick(self, request: InferenceRequest) -> bool:
        """Nothing has to be compiled for it."""
        ...

    def prepare(self, number: int, request: InferenceRequest, *, arrived: float | None = None) -> Prepared:
        """Check and tokenise a request. Never raises."""
        ...


class _Job(NamedTuple):
    number: int
    request: InferenceRequest
    arrived: float


class Lanes:
    """`deliver` is called from the lanes' threads with what came out; it may block."""

    def __init__(self, intake: Preparing, deliver: Callable[[Prepared], None], *, limit: int) -> None:
        self._deliver = deliver
        self._quick: queue.Queue[_Job] = queue.Queue(limit)
        self._slow: queue.Queue[_Job] = queue.Queue(limit)
        self._under_way: set[int] = set()
        self._intakes = (intake.beside("quick"), intake.beside("slow"))

    def start(self) -> None:
        """Begin to prepare."""
        for name, jobs, intake in (("quick", self._quick, self._intakes[0]), ("slow", self._slow, self._intakes[1])):
            threading.Thread(target=self._work, args=(jobs, intake), name=f"prepare-{name}", daemon=True).start()

    def put(self, number: int, request: InferenceRequest) -> Prepared | None:
        """Let a request be prepared; what became of it already, when the lane is full. Never blocks."""
        quick = not is_large(request) and self._intakes[0].is_quick(request)
        jobs = self._quick if quick else self._slow
        self._under_way.add(number)
        try:
            jobs.put_nowait(_Job(number, request, time.monotonic()))
        except queue.Full:
            self._under_way.discard(number)
            return Prepared(number, Busy("too many requests arrive at once for this model; try again", retry_after=1.0))
        return None

    def abort(self, number: int) -> Prepared | None:
        """Forget a request that is on its way; its end, or None when it is not."""
        if number not in self._under_way:
            return None
        self._under_way.discard(number)
        return Prepared(number, cancelled())

    def arrive(self, prepared: Prepared) -> bool:
        """Whether somebody still waits for what was delivered. To be asked by the thread that calls `put` and `abort`."""
        known = prepared.number in self._under_way
        self._under_way.discard(prepared.number)
        return known

    def _work(self, jobs: queue.Queue[_Job], intake: Preparing) -> None:
        while True:
            job = jobs.get()
            # What was aborted meanwhile need not be read any more. A look at a set that another thread changes is safe.
            if job.number in self._under_way:
                self._deliver(intake.prepare(job.number, job.request, arrived=job.arrived))


def is_large(request: InferenceRequest) -> bool:
    """Whether a request holds more text, ids or pieces of messages than SMALL. Looks no further than that."""
    left = SMALL - len(request.prompt or ()) - len(request.grammar.text if request.grammar else "")
    left -= sum(8 + len(one) for one in request.inputs or ())
    values: list[Any] = [*(request.messages or ()), *request.tools]
    if len(values) > SMALL // 16:
        return True
    while values and left >= 0:
        value = values.pop()
        left -= 8 + (len(value) if isinstance(value, str) else 0)
        if isinstance(value, dict | list):
            left -= 8 * len(value)
            values += value.values() if isinstance(value, dict) else value
    return left < 0
