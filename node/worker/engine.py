"""The engine: takes requests, runs steps, says what came out. No socket, no thread.

1. `step` does one forward pass for everybody and returns everything that it produced as one message.
2. A request that cannot be served fails when it is submitted and touches nobody else.
3. When a step breaks, the sequences in it fail; the cache is rebuilt and everybody else is computed again.
   When the model then cannot produce one token any more, `step` raises: only a new process can help.
4. An aborted sequence is gone before the next step, with a `Fail` of code `cancelled`.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mesh.errors import BackendFailed, BadRequest, MeshError, TimedOut
from mesh.messages.inference import Accepted, Done, Event, FinishReason
from mesh.messages.worker import EngineLoad, Step
from mesh.service import fail_of
from node.room import new_tokens
from node.worker.chat import Prompts
from node.worker.output.choice import choose, computed_only
from node.worker.output.outputs import Outputs
from node.worker.scheduler import Scheduler, Share
from node.worker.sequence import Sequence

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from node.worker.output.choice import Pick
    from node.worker.runner import Runner

_logger = logging.getLogger(__name__)

CLIENT_CLOSED = 499
SMOOTHING = 0.2
"""Weight of the newest step in the rates."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`budget`: tokens computed in one step; `queue`: requests that may wait for a slot."""

    budget: int = 512
    queue: int = 256


class Engine:
    """One model being served."""

    def __init__(
        self, runner: Runner, tokenizer: Any, *, vocabulary: int, end_tokens: frozenset[int], limits: Limits | None = None
    ) -> None:
        limits = limits or Limits()
        self._runner = runner
        self._prompts = Prompts(tokenizer, vocabulary)
        self.outputs = Outputs(tokenizer, template=self._prompts.template, vocabulary=vocabulary, end_tokens=end_tokens)
        budget = limits.budget if runner.batching else runner.context_length
        self._scheduler = Scheduler(slots=runner.slots, budget=budget, queue_limit=limits.queue)
        self._sequences: dict[int, Sequence] = {}
        self._events: list[tuple[int, Event]] = []
        self._steps = 0
        self._prefill_rate = 0.0
        self._decode_rate = 0.0

    @property
    def idle(self) -> bool:
        """There is nothing to compute and nothing to tell."""
        return not self._sequences and not self._events

    @property
    def load(self) -> EngineLoad:
        """The counters now. `prefill_rate` is the engine's; `decode_rate` is what one request gets, whatever the batch."""
        return EngineLoad(
            step=self._steps,
            running=len(self._scheduler.active),
            waiting=len(self._scheduler.waiting),
            slots=self._scheduler.slots,
            prefill_rate=self._prefill_rate,
            decode_rate=self._decode_rate,
        )

    def submit(self, number: int, request: InferenceRequest) -> None:
        """Take a request; the next step tells how it began."""
        if number in self._sequences:
            _logger.error("request number %d is in use; the second one is ignored", number)
            return
        try:
            sequence = self._sequence(number, request)
            self._scheduler.enqueue(sequence)
        except MeshError as error:
            self._fail(number, error)
        except Exception:
            _logger.exception("request %s could not be prepared", request.request_id)
            self._fail(number, BackendFailed("the request could not be prepared for the model; see the worker's log"))
        else:
            self._sequences[number] = sequence
            load = self.load
            self._events.append((number, Accepted(running=load.running, waiting=load.waiting)))

    def abort(self, number: int) -> None:
        """Stop a request. Unknown numbers are ignored: it may just have ended."""
        if sequence := self._sequences.get(number):
            self._drop(sequence, BadRequest("the request was cancelled", code="cancelled", status=CLIENT_CLOSED))

    def step(self) -> Step | None:
        """Compute once; None when there was nothing to do. Raises when the model is broken for good."""
        self._expire()
        plan = self._scheduler.plan()
        if plan:
            self._steps += 1
            self._compute(plan)
        if not plan and not self._events:
            return None
        events, self._events = self._events, []
        return Step(load=self.load, events=events)

    def warm_up(self) -> None:
        """Generate one token, and raise whatever goes wrong. Only between requests."""
        sequence = Sequence(number=-1, tokens=[0], prompt_length=1, choice=computed_only())
        sequence.start(0)
        with torch.inference_mode():
            logits = self._runner.run([Share(sequence, 1)])
            choose(logits, [sequence.choice])
        if bool(logits.isnan().any()):
            raise RuntimeError("the model computes NaN")
        self._runner.reset()

    def _sequence(self, number: int, request: InferenceRequest) -> Sequence:
        self.outputs.check(request)
        ids = self._prompts.ids(request)
        limit = new_tokens(request, prompt_tokens=len(ids), context_length=self._runner.context_length)
        left = math.inf if request.deadline_ms is None else request.deadline_ms / 1000
        return Sequence(
            number=number,
            tokens=ids,
            prompt_length=len(ids),
            choice=self.outputs.choice(request, ids, limit=limit),
            deadline=time.monotonic() + left,
        )

    def _expire(self) -> None:
        now = time.monotonic()
        for sequence in [each for each in self._sequences.values() if each.deadline <= now]:
            self._drop(sequence, TimedOut("the request's deadline passed", code="deadline_exceeded"))

    def _compute(self, plan: list[Share]) -> None:
        begun = time.monotonic()
        completing = [share.sequence for share in plan if share.completes]
        try:
            with torch.inference_mode():
                logits = self._runner.run(plan)
                broken = logits.isnan().any(-1).tolist()
                picks = choose(logits.nan_to_num(), [each.choice for each in completing]) if completing else []
        # Whatever broke in there, it must not end the process: others are being served.
        except Exception:
            _logger.exception("step %d with %d sequences broke", self._steps, len(plan))
            self._recover(plan)
            return
        for share in plan:
            share.sequence.computed += share.count
            share.sequence.largest_batch = max(share.sequence.largest_batch, len(plan))
        self._measure(plan, time.monotonic() - begun)
        for sequence, pick, bad in zip(completing, picks, broken, strict=True):
            self._advance(sequence, pick, broken=bad)

    def _advance(self, sequence: Sequence, pick: Pick | MeshError, *, broken: bool) -> None:
        """One more token for one sequence; what goes wrong here is its own."""
        if broken:
            self._runner.clear(sequence.slot)
            self._drop(sequence, BackendFailed("the model computed NaN for this request; another dtype may help"))
            return
        if isinstance(pick, MeshError):
            self._drop(sequence, pick)
            return
        try:
            self._give(sequence, pick)
        except MeshError as error:
            self._drop(sequence, error)
        except Exception:
            _logger.exception("token %d could not be given out", pick.token)
            self._drop(sequence, BackendFailed("the output could not be decoded; see the worker's log"))

    def _give(self, sequence: Sequence, pick: Pick) -> None:
        sequence.append(pick.token)
        delta, reason = sequence.choice.take(pick)
        self._events.append((sequence.number, delta))
        if reason:
            self._finish(sequence, reason)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        self._remove(sequence)
        load = self.load
        done = Done(
            finish_reason=reason,
            usage=sequence.usage(),
            performance=sequence.performance(),
            running=load.running,
            waiting=load.waiting,
        )
        self._events.append((sequence.number, done))

    def _drop(self, sequence: Sequence, error: MeshError) -> None:
        self._remove(sequence)
        self._fail(sequence.number, error)

    def _fail(self, number: int, error: MeshError) -> None:
        load = self.load
        self._events.append((number, fail_of(error, running=load.running, waiting=load.waiting)))

    def _remove(self, sequence: Sequence) -> None:
        del self._sequences[sequence.number]
        move = self._scheduler.remove(sequence)
        if move and move.length:
            self._runner.move(*move)

    def _recover(self, plan: list[Share]) -> None:
        # First, so that closing the gaps below has nothing to copy in a cache that may be broken.
        self._scheduler.rewind()
        for share in plan:
            self._drop(share.sequence, BackendFailed("the engine failed while it worked on this request; see the worker's log"))
        self._runner.reset()
        self.warm_up()

    def _measure(self, plan: list[Share], seconds: float) -> None:
        prompts = sum(share.count for share in plan if share.sequence.generated == 0)
        if prompts and seconds > 0:
            self._prefill_rate = _smoothed(self._prefill_rate, prompts / seconds)
        elif seconds > 0:
            self._decode_rate = _smoothed(self._decode_rate, 1 / seconds)


def _smoothed(old: float, new: float) -> float:
    return new if old == 0 else old + SMOOTHING * (new - old)
