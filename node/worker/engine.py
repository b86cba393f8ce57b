"""The engine: takes prepared requests, runs steps, says what came out. No socket, no thread.

1. `step` does one forward pass for everybody and returns everything that it produced as one message.
2. A request that cannot be served fails when it is taken and touches nobody else. Each ends in exactly one terminal event.
3. When a step breaks, its sequences are computed one by one; those that break again fail, the others go on. When all of them
   break, the cache is rebuilt and everybody else is computed again. When the model then cannot produce one token any more, `step`
   raises: only a new process can help.
4. A step that runs out of memory is made smaller until it fits; only a single token that does not fit fails its sequence.
5. An aborted sequence is gone before the next step, with a `Fail` of code `cancelled`.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from mesh.errors import BackendFailed, BadRequest, MeshError, TimedOut
from mesh.messages.inference import Accepted, Done, Event
from mesh.messages.worker import EngineLoad, EngineStats, Step
from mesh.service import fail_of
from node.worker.counters import Counters
from node.worker.device import gpu_stats, is_out_of_memory
from node.worker.output.choice import Pick, choose, computed_only
from node.worker.pace import Pace
from node.worker.scheduler import Scheduler, Share
from node.worker.sequence import Sequence

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from node.worker.intake import Intake, Prepared
    from node.worker.runner import Runner

_logger = logging.getLogger(__name__)

CLIENT_CLOSED = 499
NAN = "nan_logits"
PROBATION = 64
"""Steps that must go well before a batch that was too large may grow again."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """`budget`: tokens computed in one step; `queue`: requests that may wait for room; `stretch`: see `node.worker.pace`."""

    budget: int = 512
    queue: int = 256
    stretch: float = 1.7


class Engine:
    """One model being served."""

    def __init__(self, runner: Runner, intake: Intake, *, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self.intake = intake
        self.limits = limits
        self._runner = runner
        self._pace = Pace(limits.stretch)
        budget = limits.budget if runner.batching else runner.context_length
        self._scheduler = Scheduler(runner.memory, self._pace, slots=runner.slots, budget=budget, queue_limit=limits.queue)
        self._sequences: dict[int, Sequence] = {}
        self._events: list[tuple[int, Event]] = []
        self._counters = Counters()
        self._steps = 0
        self._probation = 0

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
            prefill_rate=self._pace.prefill_rate,
            decode_rate=self._pace.decode_rate,
        )

    @property
    def stats(self) -> EngineStats:
        """What was done since the start."""
        queue, prefill, decode = self._counters.averages
        return EngineStats(
            total_requests=self._counters.total,
            completed_requests=self._counters.completed,
            failed_requests=self._counters.failed,
            total_tokens_generated=self._counters.tokens,
            avg_queue_time_ms=queue,
            avg_prefill_time_ms=prefill,
            avg_decode_time_ms=decode,
            queue_size=len(self._scheduler.waiting),
            queue_capacity=self._scheduler.queue_limit,
            concurrent_requests=len(self._scheduler.active),
            preemptions=self._scheduler.preemptions,
            broken_steps=self._counters.broken_steps,
            cache=self._runner.memory.stats,
            gpu=gpu_stats(self._runner.device),
        )

    def submit(self, number: int, request: InferenceRequest) -> None:
        """Prepare a request here and now, and take it."""
        self.take(self.intake.prepare(number, request))

    def take(self, prepared: Prepared) -> None:
        """Take a prepared request; the next step tells how it began."""
        if prepared.number in self._sequences:
            _logger.error("request number %d is in use; the second one is ignored", prepared.number)
            return
        if isinstance(prepared.result, MeshError):
            self.refuse(prepared.number, prepared.result)
            return
        sequence = prepared.result
        assert isinstance(sequence, Sequence)
        try:
            self._scheduler.enqueue(sequence)
        except MeshError as error:
            self.refuse(prepared.number, error)
            return
        self._counters.total += 1
        self._sequences[prepared.number] = sequence
        load = self.load
        self._events.append((prepared.number, Accepted(running=load.running, waiting=load.waiting)))
        if sequence.reason:
            # Resumed behind its last token: all that is missing is to say so.
            self._finish(sequence)

    def refuse(self, number: int, error: MeshError) -> None:
        """Fail a request that the engine never took."""
        self._counters.total += 1
        self._fail(number, error)

    def abort(self, number: int) -> None:
        """Stop a request. Unknown numbers are ignored: it may just have ended."""
        if sequence := self._sequences.get(number):
            self._drop(sequence, cancelled())

    def clear(self, error: MeshError) -> None:
        """Fail every request; the next step tells."""
        for sequence in list(self._sequences.values()):
            self._drop(sequence, error)

    def rest(self) -> int:
        """Give the memory of everything that was computed back; the bytes. Nobody may have a request here, or get one."""
        return self._runner.rest()

    def rise(self) -> None:
        """Take it again, and generate a token. Raises whatever goes wrong."""
        self._runner.rise()
        self.warm_up()

    def step(self) -> Step | None:
        """Compute once; None when there was nothing to do. Raises when the model is broken for good."""
        self._expire()
        if self._runner.memory.damaged:
            self._rebuild()
        plan = self._scheduler.plan()
        if plan:
            self._steps += 1
            self._compute(plan)
        if not plan and not self._events:
            return None
        events, self._events = self._events, []
        return Step(load=self.load, events=events)

    def warm_up(self) -> None:
        """Generate one token, and raise whatever goes wrong. Only while nobody runs."""
        sequence = Sequence(number=-1, tokens=[0], prompt_length=1, choice=computed_only())
        self._runner.memory.lend(sequence)
        with torch.inference_mode():
            logits = self._runner.run([Share(sequence, 1)])
            choose(logits, [sequence.choice])
        self._runner.memory.release(sequence, keep=False)
        if bool(logits.isnan().any()):
            raise RuntimeError("the model computes NaN")

    def _expire(self) -> None:
        now = time.monotonic()
        for sequence in [each for each in self._sequences.values() if each.deadline <= now]:
            self._drop(sequence, TimedOut("the request's deadline passed", code="deadline_exceeded"))

    def _compute(self, plan: list[Share]) -> None:
        begun = time.monotonic()
        try:
            picks = self._run(plan)
        # Whatever broke in there, it must not end the process: others are being served.
        except Exception as error:
            too_large = is_out_of_memory(error)
            _logger.log(
                logging.WARNING if too_large else logging.ERROR,
                "step %d with %d sequences broke",
                self._steps,
                len(plan),
                exc_info=True,
            )
        else:
            self._measure(plan, time.monotonic() - begun)
            self._accept(plan, picks, batch=len(plan))
            return
        if too_large:
            self._shrink(plan)
        else:
            self._isolate(plan)

    def _run(self, plan: list[Share]) -> list[Pick | MeshError]:
        """The next token of each sequence that completes, or why it has none."""
        completing = [share.sequence for share in plan if share.completes]
        with torch.inference_mode():
            logits = self._runner.run(plan)
            if not completing:
                return []
            choices = [each.choice for each in completing]
            # A row's sum costs a tenth of looking at every logit, and is finite in nearly every step there is.
            if bool(logits.sum(-1, dtype=torch.float32).isfinite().all()):
                return choose(logits, choices)
            broken = logits.isnan().any(-1).tolist()
            picks = choose(logits.nan_to_num(), choices)
        return [_nan() if bad else pick for pick, bad in zip(picks, broken, strict=True)]

    def _accept(self, plan: list[Share], picks: list[Pick | MeshError], *, batch: int) -> None:
        """A step went well: note what is computed now, and give out the tokens."""
        completing = [share.sequence for share in plan if share.completes]
        for share in plan:
            share.sequence.computed += share.count
            share.sequence.largest_batch = max(share.sequence.largest_batch, batch)
        for sequence, pick in zip(completing, picks, strict=True):
            self._advance(sequence, pick)

    def _advance(self, sequence: Sequence, pick: Pick | MeshError) -> None:
        """One more token for one sequence; what goes wrong here is its own."""
        if isinstance(pick, MeshError):
            self._drop(sequence, pick, keep=pick.code != NAN)
            return
        if sequence.generated == sequence.resumed:
            self._runner.memory.share(sequence)
        try:
            delta = sequence.take(pick)
        except MeshError as error:
            self._drop(sequence, error)
            return
        except Exception:
            _logger.exception("token %d could not be given out", pick.token)
            self._drop(sequence, BackendFailed("the output could not be decoded; see the worker's log"))
            return
        sequence.mark()
        self._counters.tokens += 1
        self._events.append((sequence.number, delta))
        if sequence.reason:
            self._finish(sequence)

    def _finish(self, sequence: Sequence) -> None:
        self._remove(sequence)
        assert sequence.reason
        load, performance = self.load, sequence.performance()
        self._counters.complete(performance)
        done = Done(
            finish_reason=sequence.reason,
            usage=sequence.usage(),
            performance=performance,
            running=load.running,
            waiting=load.waiting,
        )
        self._events.append((sequence.number, done))

    def _drop(self, sequence: Sequence, error: MeshError, *, keep: bool = True) -> None:
        self._remove(sequence, keep=keep)
        self._fail(sequence.number, error)

    def _fail(self, number: int, error: MeshError) -> None:
        load = self.load
        self._counters.failed += 1
        self._events.append((number, fail_of(error, running=load.running, waiting=load.waiting)))

    def _remove(self, sequence: Sequence, *, keep: bool = True) -> None:
        del self._sequences[sequence.number]
        self._scheduler.remove(sequence, keep=keep)

    def _shrink(self, plan: list[Share]) -> None:
        """The step did not fit into the device's memory: nothing of it counts, and the next one is smaller."""
        tokens = sum(share.count for share in plan)
        self._probation = PROBATION
        self._runner.relieve()
        if self._scheduler.shrink(tokens):
            return
        for share in plan:
            error = BackendFailed("the device has no memory left to work on this request", code="out_of_memory")
            self._drop(share.sequence, error)

    def _isolate(self, plan: list[Share]) -> None:
        """Compute the shares of a broken step one by one, and fail those that break again."""
        self._counters.broken_steps += 1
        broken = 0
        for share in plan:
            try:
                picks = self._run([share])
            # As above; and this time it is clear whose fault it is.
            except Exception:
                _logger.exception("the request with number %d breaks the engine", share.sequence.number)
                error = BackendFailed("the engine failed while it worked on this request; see the worker's log")
                self._drop(share.sequence, error, keep=False)
                broken += 1
            else:
                self._accept([share], picks, batch=1)
        if broken == len(plan):
            self._rebuild()

    def _rebuild(self) -> None:
        """Nothing that is in the cache can be trusted."""
        self._scheduler.rewind()
        self._runner.reset()
        self.warm_up()

    def _measure(self, plan: list[Share], seconds: float) -> None:
        prompts = sum(share.count for share in plan if share.count > 1)
        self._pace.measure(prompt_tokens=prompts, decoding=any(share.count == 1 for share in plan), seconds=seconds)
        if self._probation:
            self._probation -= 1
            if not self._probation and not self._scheduler.grow():
                self._probation = PROBATION


def _nan() -> BackendFailed:
    return BackendFailed("the model computed NaN for this request; another dtype may help", code=NAN)


def cancelled() -> BadRequest:
    """What an aborted request fails with."""
    return BadRequest("the request was cancelled", code="cancelled", status=CLIENT_CLOSED)
