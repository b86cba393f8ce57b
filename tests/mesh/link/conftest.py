"""Two ends of a link over the memory network, and one raw end that may misbehave."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import trio

from mesh.framing import FrameReader, frame
from mesh.identity import Identity
from mesh.link import Link, LinkSide
from mesh.link.codec import decode, encode, join
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.link import Hello
from mesh.messages.record import NodeRecord
from mesh.record import RECORD_TTL, seal
from mesh.transport.base import Channel
from mesh.transport.memory import MemoryNetwork, MemoryTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

DONE = Done("stop", Usage(1, 2), Performance(1, 2, 3, 4, 5))


class Words:
    """A service that answers with the words of the prompt."""

    def __init__(self) -> None:
        self.running = 0
        self.cancelled = 0
        self.gate = trio.Event()
        self.gate.set()

    async def infer(self, request: InferenceRequest, emit: Callable[[Any], None]) -> None:
        self.running += 1
        try:
            emit(Accepted(running=self.running, waiting=7))
            await self.gate.wait()
            for index, word in enumerate(str(request.prompt).split()):
                emit(Delta(index, [index], word))
                await trio.lowlevel.checkpoint()
            emit(DONE)
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


def hello_of(identity: Identity, mesh: str = "test", instance: str = "one", **changes: Any) -> Hello:
    values: dict[str, Any] = {
        "peer_id": identity.peer_id,
        "sequence": 1,
        "issued_at": 0,
        "ttl": RECORD_TTL,
        "role": "node",
        "name": "a node",
        "mesh": mesh,
        "version": "0",
        "addresses": [],
    }
    return Hello(mesh=mesh, instance=instance, record=seal(identity, NodeRecord(**(values | changes))))


def side_of(identity: Identity, mesh: str = "test", **values: Any) -> LinkSide:
    return LinkSide(hello=lambda: hello_of(identity, mesh), **values)


@dataclass
class Pair:
    """Two linked peers: `near` dialled `far`."""

    network: MemoryNetwork
    near: Link
    far: Link
    outcomes: dict[str, BaseException | None] = field(default_factory=dict)


@dataclass
class Raw:
    """The far end of a link without the rules: it sends what a test likes."""

    channel: Channel
    frames: FrameReader = field(default_factory=FrameReader)
    received: list[Any] = field(default_factory=list)

    async def say(self, *messages: Any) -> None:
        await self.channel.send_all(frame(join([m if isinstance(m, bytes) else encode(m) for m in messages])))

    async def hear(self, kind: type) -> Any:
        """The next message of a kind; others are kept in `received`. None at the end of the channel."""
        seen = 0
        while True:
            while seen < len(self.received):
                if isinstance(self.received[seen], kind):
                    return self.received.pop(seen)
                seen += 1
            if not await self.more():
                return None

    async def more(self) -> bool:
        """Take in what comes next. False at the end of the channel."""
        data = await self.channel.receive_some(65536)
        for body in self.frames.feed(bytes(data)):
            self.received += decode(body)
        return bool(data)


@dataclass
class Kit:
    network: MemoryNetwork
    near: Identity = field(default_factory=Identity.generate)
    far: Identity = field(default_factory=Identity.generate)

    @asynccontextmanager
    async def channels(self) -> AsyncIterator[tuple[Channel, Channel]]:
        """(near, far) ends of one channel."""
        send, receive = trio.open_memory_channel[Channel](0)

        async def serve(channel: Channel) -> None:
            await send.send(channel)
            await trio.sleep_forever()

        async def refuse(channel: Channel) -> None:
            channel.abort()

        near, far = MemoryTransport(self.near, self.network), MemoryTransport(self.far, self.network)
        async with trio.open_nursery() as nursery:
            await nursery.start(near.run, refuse)
            await nursery.start(far.run, serve)
            yield await near.dial(far.addresses), await receive.receive()
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def links(self, near: LinkSide | None = None, far: LinkSide | None = None) -> AsyncIterator[Pair]:
        """A running link. `outcomes` holds what each side's `run` raised, once it ended."""
        async with self.channels() as (here, there), trio.open_nursery() as nursery:
            pair = Pair(
                self.network,
                Link(here, near or side_of(self.near), dialled=True),
                Link(there, far or side_of(self.far), dialled=False),
            )
            async with trio.open_nursery() as both:
                for name in ("near", "far"):
                    both.start_soon(nursery.start, self._watch, pair, name)
            yield pair
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def raw(
        self, near: LinkSide | None = None, *, features: Iterable[str] = ()
    ) -> AsyncIterator[tuple[Link, Raw, dict[str, BaseException | None]]]:
        """A running link whose far end is in the test's hands, after its hello with `features`."""
        async with self.channels() as (here, there), trio.open_nursery() as nursery:
            raw = Raw(there)
            link = Link(here, near or side_of(self.near), dialled=True)
            pair = Pair(self.network, link, link)
            await raw.say(msgspec.structs.replace(hello_of(self.far), features=[*features]))
            await nursery.start(self._watch, pair, "near")
            await raw.hear(Hello)
            yield link, raw, pair.outcomes
            nursery.cancel_scope.cancel()

    async def _watch(self, pair: Pair, name: str, *, task_status: trio.TaskStatus[None]) -> None:
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(getattr(pair, name).run)
                task_status.started()
        except* Exception as group:  # noqa: BLE001 - the outcome is what a test looks at
            pair.outcomes[name] = group.exceptions[0]
        else:
            pair.outcomes[name] = None


@pytest.fixture
def kit() -> Kit:
    return Kit(MemoryNetwork())


@pytest.fixture
def raw_end() -> type[Raw]:
    return Raw


@pytest.fixture
def words() -> type[Words]:
    return Words


@pytest.fixture
def side() -> Callable[..., LinkSide]:
    return side_of


@pytest.fixture
def hello() -> Callable[..., Hello]:
    return hello_of


@pytest.fixture
def done() -> Done:
    return DONE


@pytest.fixture
def ask() -> Callable[..., InferenceRequest]:
    def ask(prompt: str = "one two three", model: str = "words") -> InferenceRequest:
        return InferenceRequest(request_id="r", model=model, task="completion", prompt=prompt)

    return ask
