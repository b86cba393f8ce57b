"""Nodes on a simulated clock: continuous batching as a fluid, with nothing random in it.

1. Decoding slows down as the batch grows: `itl` seconds per token alone, twice that when all slots are taken.
2. Prompts are computed one after the other, beside the decoding ones.
3. What a node reports (load, `Accepted`, `Done`) is what a real one reports, no more.
4. A prefix cache keeps the first `Speed.cache` tokens' worth of beginnings, the ones used last.
5. How many tokens an answer has stands in the request's `seed`: nothing that routes may look at it.
"""

from __future__ import annotations

import heapq
import itertools
from collections import OrderedDict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.errors import Busy
from mesh.identity import PeerId
from mesh.messages.inference import Accepted, Delta, Done, Performance, Usage
from mesh.messages.link import Hello, ModelLoad
from mesh.messages.record import ModelEntry, NodeRecord, SealedRecord

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit

MODEL = "simulated"
MAX_WAITING = 256
SEPARATOR = "|"
"""Ends the part of a prompt that others may share."""


@dataclass(eq=False)
class Work:
    """One request inside a node."""

    prompt_tokens: int
    output_tokens: int
    admitted: trio.Event = field(default_factory=trio.Event)
    finished: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a node can do: tokens per second of prefill, seconds per decoded token when alone, requests at once."""

    prefill_rate: float
    itl: float
    slots: int = 8
    cache: int = 0
    """Beginnings of prompts that are kept: texts up to the first `SEPARATOR`."""

    def itl_at(self, running: int) -> float:
        """Seconds per token of each request when so many run."""
        return self.itl * (1 + max(0, running - 1) / max(1, self.slots - 1))

    def throughput(self, prompt_tokens: float, output_tokens: float) -> float:
        """Requests per second of this mean size that it can bear."""
        decoding = self.slots / (output_tokens * self.itl_at(self.slots))
        return min(decoding, self.prefill_rate / prompt_tokens)


class FluidNode:
    """One node. `run` must be running before it is asked."""

    def __init__(self, name: str, speed: Speed) -> None:
        self.peer_id = PeerId(name)
        self.speed = speed
        self.served = 0
        self.hits = 0
        self._cached: OrderedDict[str, None] = OrderedDict()
        self.waiting: deque[Work] = deque()
        self.running = 0
        self.decoded = 0.0
        """Tokens that each request that has decoded since the start got: one number for all, because they share alike."""
        self._decoded_at = 0.0
        self._decoding: list[tuple[float, int, Work]] = []
        self._prefilled_at = 0.0
        self._numbers = itertools.count()
        self._changed = trio.Event()

    @property
    def load(self) -> ModelLoad:
        """What a heartbeat says."""
        return ModelLoad(
            state="ready",
            running=self.running,
            waiting=len(self.waiting),
            slots=self.speed.slots,
            prefill_rate=self.speed.prefill_rate if self.served else 0.0,
            decode_rate=1 / self.speed.itl_at(max(1, self.running)) if self.served else 0.0,
        )

    async def run(self) -> None:
        """Decode until cancelled."""
        self._decoded_at = trio.current_time()
        while True:
            self._advance()
            while self._decoding and self._decoding[0][0] <= self.decoded + 1e-9:
                self._finish(heapq.heappop(self._decoding)[2])
            changed = self._changed = trio.Event()
            with trio.move_on_after(self._until_next()):
                await changed.wait()

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Answer after the time that it takes."""
        if len(self.waiting) >= MAX_WAITING:
            raise Busy("full")
        work = Work(prompt_tokens=self._uncached(str(request.prompt)) // 4, output_tokens=request.seed)
        load = self.load
        emit(Accepted(running=load.running, waiting=load.waiting + (load.running >= load.slots)))
        self.waiting.append(work)
        self._admit()
        try:
            await work.admitted.wait()
            await self._prefill(work)
            emit(Delta(0, [0], ""))
            self._advance()
            heapq.heappush(self._decoding, (self.decoded + work.output_tokens, next(self._numbers), work))
            self._changed.set()
            await work.finished.wait()
        finally:
            self._release(work)
        emit(Delta(1, list(range(work.output_tokens - 1)), ""))
        load = self.load
        usage = Usage(work.prompt_tokens, work.output_tokens)
        emit(Done("stop", usage, Performance(0, 0, 0, 0, 0), running=load.running, waiting=load.waiting))

    def until_done(self, prompt_tokens: int, output_tokens: int) -> float:
        """Seconds that one more request would take if no other one came: what only an oracle knows."""
        self._advance()
        now, finish = trio.current_time(), self.decoded
        left = sorted(target - finish for target, _, _ in self._decoding)
        running, waiting, passed = self.running, [work.output_tokens for work in self.waiting], 0.0
        queue = deque([*waiting, output_tokens])
        prefill = max(0.0, self._prefilled_at - now)
        while running >= self.speed.slots and left:
            step = left[0]
            passed += step * self.speed.itl_at(running)
            left = [one - step for one in left[1:]]
            running -= 1
            if len(queue) > 1:
                left = sorted([*left, float(queue.popleft())])
                running += 1
        passed += max(0.0, prefill - passed) + prompt_tokens / self.speed.prefill_rate
        return passed + self._decode_time(left, output_tokens)

    def _decode_time(self, left: list[float], tokens: float) -> float:
        passed, done = 0.0, 0.0
        for index, target in enumerate(left):
            running = len(left) - index + 1
            step = min(target, tokens) - done
            passed += max(0.0, step) * self.speed.itl_at(running)
            done = max(done, min(target, tokens))
            if target >= tokens:
                return passed
        return passed + max(0.0, tokens - done) * self.speed.itl_at(1)

    def _uncached(self, prompt: str) -> int:
        beginning, separator, rest = prompt.partition(SEPARATOR)
        if not self.speed.cache or not separator:
            return len(prompt)
        hit = beginning in self._cached
        self.hits += hit
        self._cached[beginning] = None
        self._cached.move_to_end(beginning)
        if len(self._cached) > self.speed.cache:
            self._cached.popitem(last=False)
        return len(rest) if hit else len(prompt)

    def _admit(self) -> None:
        while self.waiting and self.running < self.speed.slots:
            self._advance()
            self.running += 1
            self.waiting.popleft().admitted.set()
            self._changed.set()

    async def _prefill(self, work: Work) -> None:
        self._prefilled_at = max(self._prefilled_at, trio.current_time()) + work.prompt_tokens / self.speed.prefill_rate
        await trio.sleep_until(self._prefilled_at)

    def _release(self, work: Work) -> None:
        if work in self.waiting:
            self.waiting.remove(work)
        elif work.admitted.is_set():
            self._advance()
            self._decoding = [entry for entry in self._decoding if entry[2] is not work]
            heapq.heapify(self._decoding)
            self.running -= 1
            self.served += 1
            self._admit()
            self._changed.set()

    def _finish(self, work: Work) -> None:
        work.finished.set()

    def _advance(self) -> None:
        now = trio.current_time()
        if self._decoding:
            self.decoded += (now - self._decoded_at) / self.speed.itl_at(max(1, self.running))
        self._decoded_at = now

    def _until_next(self) -> float:
        if not self._decoding:
            return float("inf")
        return max(0.0, self._decoding[0][0] - self.decoded) * self.speed.itl_at(max(1, self.running))


class FluidLink:
    """A gateway's link to a node: adds the round trip, and knows the load of the last heartbeat."""

    leaving = False

    def __init__(self, node: FluidNode, rtt: float) -> None:
        self.peer_id = node.peer_id
        self.node = node
        self.rtt = rtt
        self.load = {MODEL: node.load}
        self.closed = trio.Event()
        self.record = NodeRecord(
            peer_id=self.peer_id,
            sequence=1,
            issued_at=0,
            ttl=120,
            role="node",
            name=self.peer_id,
            mesh="default",
            version="0",
            addresses=[],
            models=[ModelEntry(id=MODEL, state="ready")],
        )
        self.hello = Hello(
            mesh="default", instance="simulated", record=SealedRecord(msgspec.msgpack.encode(self.record), bytes(64))
        )

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Ask the node; both directions take half the round trip."""
        await trio.sleep(self.rtt)
        await self.node.infer(request, emit)
