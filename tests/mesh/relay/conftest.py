"""A relay on real sockets, peers that say they are linked with it, and what each of them is sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from mesh.errors import Denied
from mesh.identity import Identity
from mesh.messages.relay import Fetch, Incoming, Join, Joined
from mesh.relay import PROTOCOL
from mesh.relay.bounds import RelayBounds
from mesh.relay.relay import Relay
from mesh.relay.wire import read, write
from mesh.transport.libp2p import Libp2pTransport

LOCAL = ["/ip4/127.0.0.1/tcp/0"]


@dataclass(eq=False)
class FakeLink:
    """What a relay asks of a link."""

    peer_id: str
    via: str | None = None
    instance: str = "first"
    sent: list[Any] = field(default_factory=list)

    @property
    def hello(self) -> Any:
        return SimpleNamespace(instance=self.instance)

    def send(self, message: Any) -> None:
        self.sent.append(message)


@dataclass
class Guest:
    """One peer: its transport, and its link with the relay as that has it."""

    transport: Libp2pTransport
    link: FakeLink
    relay: list[str]

    @property
    def peer_id(self) -> str:
        return self.link.peer_id

    async def ask(self, question: Any) -> tuple[Any, Joined]:
        """A stream to the relay, and its answer."""
        channel = await self.transport.open(self.relay, PROTOCOL)
        await write(channel, question)
        answer = await read(channel)
        assert isinstance(answer, Joined)
        return channel, answer

    async def refused(self, question: Any) -> str:
        channel, answer = await self.ask(question)
        channel.abort()
        return answer.code

    async def incoming(self, count: int = 1) -> Incoming:
        with trio.fail_after(10):
            while len(self.link.sent) < count:  # noqa: ASYNC110 - what is sent has no event
                await trio.sleep(0.005)
        message = self.link.sent[count - 1]
        assert isinstance(message, Incoming)
        return message


@dataclass
class Station:
    """The relay and its guests."""

    nursery: trio.Nursery
    links: dict[str, FakeLink] = field(default_factory=dict)
    willing: bool = True
    addresses: list[str] = field(default_factory=list)
    forbidden: set[str] = field(default_factory=set)
    relay: Relay = None  # type: ignore[assignment] # built once it is known with which bounds

    async def open(self, **bounds: Any) -> Station:
        self.relay = Relay(self.links.get, self._objection, lambda: self.willing, RelayBounds(**bounds))
        transport = Libp2pTransport(Identity.generate(), LOCAL)
        transport.answer(PROTOCOL, self.relay.answer)
        await self.nursery.start(transport.run, self._nobody)
        self.addresses = transport.addresses
        return self

    async def guest(self, *, linked: bool = True) -> Guest:
        identity = Identity.generate()
        transport = Libp2pTransport(identity, [])
        await self.nursery.start(transport.run, self._nobody)
        guest = Guest(transport, FakeLink(identity.peer_id), self.addresses)
        if linked:
            self.links[identity.peer_id] = guest.link
        return guest

    async def joined(self, asker: Guest, target: Guest) -> tuple[Any, Any]:
        """Both ends of a new circuit."""
        if target.peer_id not in self.relay.reservations:
            assert self.relay.reserve(target.link).code == ""
        ends: list[Any] = []

        async def ask() -> None:
            channel, answer = await asker.ask(Join(target.peer_id))
            assert answer == Joined()
            ends.insert(0, channel)

        before = len(target.link.sent)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            channel, answer = await target.ask(Fetch((await target.incoming(before + 1)).circuit))
            assert answer == Joined()
        return ends[0], channel

    def _objection(self, channel: Any) -> Denied | None:
        return Denied("no", code="peer_denied", status=403) if channel.peer_id in self.forbidden else None

    async def _nobody(self, _channel: Any) -> None:
        raise AssertionError("nobody is linked here")


@pytest.fixture
async def station():
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            yield Station(nursery)
            nursery.cancel_scope.cancel()


@pytest.fixture
def until():
    async def wait(condition: Any) -> None:
        with trio.fail_after(20):
            while not condition():  # noqa: ASYNC110 - what is waited for has no event
                await trio.sleep(0.005)

    return wait
