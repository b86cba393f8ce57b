"""What a link costs: CPU per token on each carrier, against one write per token and against bare TCP; round trips of a request.

1. Both ends run in this process, so that its CPU time is that of both.
2. The service is lock-stepped like an engine: one step gives every stream a token, the next begins when all of them have arrived.
3. What is compared alternates in short rounds, and the median of each is taken: a busy machine slows all of them alike.
"""

from __future__ import annotations

import statistics
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import trio

from mesh.framing import FrameReader, frame
from mesh.identity import Identity
from mesh.link import Link, LinkSide
from mesh.link.codec import decode, encode, join
from mesh.link.writer import LinkWriter
from mesh.messages.inference import Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.link import Emit, Hello, Open
from mesh.messages.record import NodeRecord
from mesh.record import RECORD_TTL, seal
from mesh.transport.base import Channel
from mesh.transport.direct import DirectTransport
from mesh.transport.libp2p import Libp2pTransport
from tests.figures import Figure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mesh.service import Emit as EmitEvent

LOCAL = ["/ip4/127.0.0.1/tcp/0"]
STREAMS = (1, 8, 64)
ROUNDS = 9
TOKENS = 2_048
"""In one round, over all its streams."""
ROUND_TRIPS = 200
DONE = Done("stop", Usage(1, 1), Performance(0, 0, 0, 0, 0))


class Engine:
    """Gives every stream a token in each step, or is done at once."""

    def __init__(self) -> None:
        self.jobs: list[EmitEvent] = []
        self._joined = trio.Event()

    async def infer(self, request: InferenceRequest, emit: EmitEvent) -> None:
        if request.max_tokens == 0:
            emit(DONE)
            return
        self.jobs.append(emit)
        self._joined.set()
        await trio.sleep_forever()

    async def has(self, streams: int) -> None:
        """Wait until so many streams are there."""
        while len(self.jobs) < streams:
            self._joined = trio.Event()
            await self._joined.wait()

    def step(self, number: int) -> None:
        for emit in self.jobs:
            emit(Delta(number, [number], " token"))


class Pair:
    """Two linked ends; `asking` asks `engine`."""

    def __init__(self, asking: Link, serving: Link, engine: Engine) -> None:
        self.asking = asking
        self.serving = serving
        self.engine = engine
        self._missing = 0
        self._arrived = trio.Event()

    async def tokens(self, streams: int) -> float:
        """CPU seconds for TOKENS tokens over so many streams."""
        async with trio.open_nursery() as nursery:
            for _ in range(streams):
                nursery.start_soon(self.asking.infer, InferenceRequest(request_id="r", model="m"), self._take)
            await self.engine.has(streams)
            await self._step(0, streams)
            spent = time.process_time()
            for number in range(TOKENS // streams):
                await self._step(number, streams)
            spent = time.process_time() - spent
            nursery.cancel_scope.cancel()
        self.engine.jobs.clear()
        return spent

    async def round_trips(self) -> list[float]:
        """Seconds of requests one after another."""
        taken = []
        for _ in range(ROUND_TRIPS):
            start = time.perf_counter()
            await self.asking.infer(InferenceRequest(request_id="r", model="m", max_tokens=0), _ignore)
            taken.append(time.perf_counter() - start)
        return taken

    async def _step(self, number: int, streams: int) -> None:
        self._missing, self._arrived = streams, trio.Event()
        self.engine.step(number)
        await self._arrived.wait()

    def _take(self, _event: Any) -> None:
        self._missing -= 1
        if not self._missing:
            self._arrived.set()


class Bare:
    """The bytes of the same messages on a TCP connection of trio's, with nothing around them."""

    def __init__(self, here: trio.SocketStream, there: trio.SocketStream) -> None:
        self._here = here
        self._there = there

    async def tokens(self, streams: int) -> float:
        """CPU seconds for TOKENS tokens, encoded, written once for each step, read and decoded."""
        number, arrived = 0, trio.Event()

        async def read() -> None:
            nonlocal arrived
            frames = FrameReader()
            while True:
                for body in frames.feed(bytes(await self._there.receive_some(64 * 1024))):
                    decode(body)
                    arrived.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            spent = time.process_time()
            for number in range(TOKENS // streams):
                arrived = trio.Event()
                parts = [encode(Emit(stream, Delta(number, [number], " token"))) for stream in range(streams)]
                await self._here.send_all(frame(join(parts)))
                await arrived.wait()
            spent = time.process_time() - spent
            nursery.cancel_scope.cancel()
        return spent

    async def round_trips(self) -> list[float]:
        """Seconds of the bytes of a request there and of its answer back."""
        request = frame(join([encode(Open(1, InferenceRequest(request_id="r", model="m", max_tokens=0)))]))
        answer = frame(join([encode(Emit(1, DONE))]))
        taken = []

        async def reply() -> None:
            while await self._there.receive_some(64 * 1024):
                await self._there.send_all(answer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(reply)
            for _ in range(ROUND_TRIPS):
                start = time.perf_counter()
                await self._here.send_all(request)
                await self._here.receive_some(64 * 1024)
                taken.append(time.perf_counter() - start)
            nursery.cancel_scope.cancel()
        return taken


class OneByOne(LinkWriter):
    """A writer that gives every message a frame, a write and a turn of its own, as a task per stream would."""

    async def _write(self, messages: list[bytes], size: int) -> None:
        await super()._write(messages, size)
        await trio.lowlevel.checkpoint()

    def _take(self) -> tuple[list[bytes], int]:
        for lane in (self._control, self._events):
            if not self._beat_due and lane.messages:
                message = lane.messages.popleft()
                lane.size -= len(message)
                lane.taken += 1
                return [message], len(message)
        return super()._take()


def _ignore(_event: Any) -> None:
    pass


def hello_of(identity: Identity) -> Hello:
    record = NodeRecord(
        peer_id=identity.peer_id, sequence=1, issued_at=0, ttl=RECORD_TTL, role="node", name="bench", mesh="bench",
        version="0", addresses=[],
    )  # fmt: skip
    return Hello(mesh="bench", instance="one", record=seal(identity, record))


@asynccontextmanager
async def channels(carrier: str, ours: Identity, theirs: Identity) -> AsyncIterator[tuple[Channel, Channel]]:
    """Both ends of one channel over loopback."""
    send, receive = trio.open_memory_channel[Channel](0)

    async def keep(channel: Channel) -> None:
        await send.send(channel)
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        if carrier == "direct":
            near, far = DirectTransport(ours, LOCAL), DirectTransport(theirs, LOCAL)
            await nursery.start(near.run, keep)
            await nursery.start(far.run, keep)
            channel = await near.dial(theirs.peer_id, far.offer(ours.peer_id), seen_at="/ip4/127.0.0.1/tcp/1")
        else:
            here, there = Libp2pTransport(ours, LOCAL), Libp2pTransport(theirs, LOCAL)
            await nursery.start(here.run, keep)
            await nursery.start(there.run, keep)
            channel = await here.dial(there.addresses)
        yield channel, await receive.receive()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def linked(carrier: str, *, one_by_one: bool = False) -> AsyncIterator[Pair]:
    """Two ends of a running link on a carrier."""
    ours, theirs, engine = Identity.generate(), Identity.generate(), Engine()
    async with channels(carrier, ours, theirs) as (here, there), trio.open_nursery() as nursery:
        asking = Link(here, LinkSide(hello=lambda: hello_of(ours)), dialled=True)
        serving = Link(there, LinkSide(hello=lambda: hello_of(theirs), service=engine), dialled=False)
        if one_by_one:
            serving._writer.__class__ = OneByOne
        async with trio.open_nursery() as both:
            both.start_soon(nursery.start, asking.run)
            both.start_soon(nursery.start, serving.run)
        yield Pair(asking, serving, engine)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def bare() -> AsyncIterator[Bare]:
    """A TCP connection to ourselves."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    here = await trio.open_tcp_stream(*listener.socket.getsockname()[:2])
    there = await listener.accept()
    async with listener, here, there:
        yield Bare(here, there)


async def rounds(measured: dict[str, Callable[[], Awaitable[float]]]) -> dict[str, float]:
    """The median of ROUNDS measurements of each, taken in turn."""
    seen: dict[str, list[float]] = {name: [] for name in measured}
    for _ in range(ROUNDS):
        for name, measure in measured.items():
            seen[name].append(await measure())
    return {name: statistics.median(values) for name, values in seen.items()}


async def tokens(carrier: str) -> list[Figure]:
    """CPU per token on one carrier."""
    figures = []
    async with linked(carrier) as link, linked(carrier, one_by_one=True) as single, bare() as tcp:
        for streams in STREAMS:
            spent = await rounds(
                {
                    "link": lambda streams=streams: link.tokens(streams),  # type: ignore[misc]
                    "single": lambda streams=streams: single.tokens(streams),  # type: ignore[misc]
                    "bare": lambda streams=streams: tcp.tokens(streams),  # type: ignore[misc]
                }
            )
            each = {name: value * 1e6 / TOKENS for name, value in spent.items()}
            about = f"{carrier}, {streams} streams" if streams > 1 else f"{carrier}, 1 stream"
            figures += [
                Figure(f"{about}: CPU per token, both ends", each["link"], "us"),
                Figure(f"{about}: CPU per token, a write for each", each["single"], "us"),
                Figure(f"{about}: CPU per token, bare TCP", each["bare"], "us"),
                Figure(f"{about}: CPU per token / bare TCP", each["link"] / each["bare"], "x"),
                Figure(
                    f"{about}: CPU per token / a write for each",
                    each["link"] / each["single"], "x", 0.1 if streams == max(STREAMS) else None,
                ),
            ]  # fmt: skip
    return figures


async def round_trips() -> list[Figure]:
    """A request that is done at once, there and back."""
    async with linked("direct") as direct, linked("libp2p") as libp2p, bare() as tcp:

        def median_of(measured: Pair | Bare) -> Callable[[], Awaitable[float]]:
            async def measure() -> float:
                return statistics.median(await measured.round_trips()) * 1e6

            return measure

        taken = await rounds({"direct": median_of(direct), "libp2p": median_of(libp2p), "bare TCP": median_of(tcp)})
    return [
        *(Figure(f"{name}: round trip of a request, p50", value, "us") for name, value in taken.items()),
        Figure("direct: round trip of a request / bare TCP", taken["direct"] / taken["bare TCP"], "x", 3.0),
        Figure("libp2p: round trip of a request / bare TCP", taken["libp2p"] / taken["bare TCP"], "x"),
    ]


async def link() -> list[Figure]:
    """Everything here, about half a minute."""
    return [*await tokens("direct"), *await tokens("libp2p"), *await round_trips()]
