"""What it costs that an answer can be gone on with: CPU for each token, and memory.

Each pair runs the same tokens twice in one process, once with all that resuming needs on the way and once without. On the node
that is what is kept of a stream. At the gateway it is the tokens that were given, where the other one only counts them, and the
id of each event for the client.
"""

from __future__ import annotations

import statistics
import time
import tracemalloc
from typing import TYPE_CHECKING

import trio

from gateway.attempt import Attempt
from gateway.delivery import Delivery
from gateway.observations import Observation
from mesh.http.message import StreamWriter
from mesh.identity import PeerId
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage
from mesh.openai.event_stream import EventStream
from mesh.openai.wording import Wording
from node.keeping import Keeper
from tests.figures import Figure

if TYPE_CHECKING:
    from mesh.messages.inference import Event
    from mesh.service import Emit

PAIRS = 20
TOKENS = 20_000
KEEP = bytes(16)
REQUEST = InferenceRequest(request_id="r", model="m")
KEPT = InferenceRequest(request_id="r", model="m", keep=KEEP)
DONE = Done("stop", Usage(1, TOKENS), Performance(1.0, 2.0, 0.0, 100.0, 1))
NODE = PeerId("12D3KooWBench")


def deltas(count: int) -> list[Delta]:
    return [Delta(number, [number], " token") for number in range(count)]


class Engine:
    """Says tokens as fast as it can, and what CPU they took."""

    def __init__(self, said: list[Delta]) -> None:
        self.said = said
        self.spent = 0.0

    async def infer(self, _request: InferenceRequest, emit: Emit) -> None:
        emit(Accepted(kept=True))
        began = time.process_time()
        for delta in self.said:
            emit(delta)
        self.spent = time.process_time() - began
        emit(DONE)


async def at_node(said: list[Delta], request: InferenceRequest) -> float:
    """CPU seconds for all tokens on their way through the keeper."""
    engine = Engine(said)
    keeper = Keeper(engine)
    async with trio.open_nursery() as nursery:
        await nursery.start(keeper.run)
        await keeper.infer(request, _nowhere)
        nursery.cancel_scope.cancel()
    return engine.spent


async def at_gateway(said: list[Delta], *, resumable: bool) -> float:
    """CPU seconds for all tokens on their way from the link to the bytes for the client."""
    engine = Engine(said)

    class Dispatched:
        async def infer(self, request: InferenceRequest, emit: Emit) -> None:
            delivery = Delivery(emit, keep=KEEP) if resumable else Counting(emit)
            await engine.infer(request, _attempt(delivery).emit)

    await EventStream(Wording("chat", REQUEST), StreamWriter(_no_bytes)).run(Dispatched(), REQUEST)
    return engine.spent


class Counting(Delivery):
    """One that knows how many tokens there were, and not which."""

    count = 0

    @property
    def tokens(self) -> int:
        return self.count

    def _keep(self, delta: Delta) -> None:
        self._check_place(delta, self.count)
        self.count += len(delta.token_ids)


def _attempt(delivery: Delivery) -> Attempt:
    return Attempt(NODE, delivery, Observation(), first_token=30.0, stall=60.0)


def _nowhere(_event: Event) -> None:
    """Nobody reads."""


def _no_bytes(_data: bytes) -> None:
    """Nobody reads."""


def memory(count: int) -> float:
    """Bytes that one answer of so many tokens holds at the gateway."""
    said = deltas(count)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        attempt = _attempt(Delivery(_nowhere, keep=KEEP))
        attempt.emit(Accepted(kept=True))
        for delta in said:
            attempt.emit(delta)
        return float(tracemalloc.get_traced_memory()[0] - before)
    finally:
        tracemalloc.stop()


async def resume() -> list[Figure]:
    """The figures."""
    said = deltas(TOKENS)
    differences: dict[str, list[float]] = {"node": [], "gateway": []}
    for _ in range(PAIRS):
        differences["node"].append(await at_node(said, KEPT) - await at_node(said, REQUEST))
        differences["gateway"].append(await at_gateway(said, resumable=True) - await at_gateway(said, resumable=False))
    node, gateway = (statistics.median(each) / TOKENS * 1e6 for each in differences.values())
    kilobytes = (memory(5000) - memory(1000)) / 4 / 1000
    return [
        Figure("being able to resume: CPU per token at the gateway", gateway, "us", 2.0),
        Figure("being able to resume: CPU per token at the node", node, "us", 2.0),
        Figure("being able to resume: memory per 1,000 tokens at the gateway", kilobytes, "KB", 8.0),
    ]
