"""64 streams on each of two carriers of one peer, and one carrier is lost at the socket: nothing is lost or doubled elsewhere."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import trio

from mesh import upgrade
from mesh.errors import MeshError
from mesh.messages.inference import Delta, Done, InferenceRequest, Performance, Usage
from tests.mesh.street import Street, until

if TYPE_CHECKING:
    from collections.abc import Callable

    from mesh.link import Link

STREAMS = 64


@dataclass
class Talking:
    """Says one token after another until `enough`, then how many there were."""

    enough: trio.Event = field(default_factory=trio.Event)

    async def infer(self, request: InferenceRequest, emit: Callable[[Any], None]) -> None:
        number = 0
        while not self.enough.is_set():
            emit(Delta(number, [hash((request.request_id, number)) & 0xFFFF], f"{number} "))
            number += 1
            await trio.sleep(0.02)
        emit(Done("stop", Usage(1, number), Performance(1, 2, 3, 4, 5)))


@dataclass
class Stream:
    """One request on one link, and everything that came of it."""

    link: Link
    events: list[Any] = field(default_factory=list)
    outcomes: list[str] = field(default_factory=list)

    async def run(self, name: str) -> None:
        try:
            await self.link.infer(InferenceRequest(request_id=name, model="m"), self.events.append)
        except MeshError as error:
            self.outcomes.append(error.code)
        else:
            self.outcomes.append("done")

    def check(self, outcome: str, name: str) -> None:
        tokens = [event for event in self.events if isinstance(event, Delta)]
        assert [token.offset for token in tokens] == [*range(len(tokens))]
        assert all(token.token_ids == [hash((name, token.offset)) & 0xFFFF] for token in tokens)
        assert self.outcomes == [outcome]
        ends = [event for event in self.events if isinstance(event, Done)]
        if outcome == "done":
            assert self.events[-1:] == ends
            assert ends[0].usage.completion_tokens == len(tokens)
        else:
            assert ends == []


@pytest.mark.parametrize("side", ["gateway", "node"])
@pytest.mark.parametrize("lost", ["libp2p", "direct"])
async def test_a_lost_carrier_ends_its_own_streams_once_and_no_other(lost: str, side: str, monkeypatch: Any) -> None:
    monkeypatch.setattr(upgrade, "DELAYS", (0.5, 0.5, 0.5))
    service = Talking()
    async with trio.open_nursery() as nursery:
        street = Street(nursery, service)
        gateway = await street.add("gateway")
        node = await street.add("node", gateway)
        link = gateway.links[node.peer_id]
        ends = {"gateway": {link.carrier: link}, "node": {}}
        ends["node"][link.carrier] = node.links[gateway.peer_id]
        streams: dict[str, Stream] = {}

        def start(carrier: str) -> None:
            for number in range(STREAMS):
                streams[f"{carrier} {number}"] = stream = Stream(ends["gateway"][carrier])
                nursery.start_soon(stream.run, f"{carrier} {number}")

        start("libp2p")
        await until(
            lambda: all(
                a.links[b.peer_id].carrier == "direct" for a, b in ((gateway, node), (node, gateway)) if b.peer_id in a.links
            )
        )
        ends["gateway"]["direct"], ends["node"]["direct"] = gateway.links[node.peer_id], node.links[gateway.peer_id]
        start("direct")
        await until(lambda: all(len(stream.events) >= 5 for stream in streams.values()))
        ends[side][lost]._channel.abort()
        await until(lambda: sum(bool(stream.outcomes) for stream in streams.values()) == STREAMS)
        kept = "direct" if lost == "libp2p" else "libp2p"
        seen = {name: len(stream.events) for name, stream in streams.items() if name.startswith(kept)}
        await until(lambda: all(len(streams[name].events) > count + 3 for name, count in seen.items()))
        service.enough.set()
        await until(lambda: all(stream.outcomes for stream in streams.values()))
        for name, stream in streams.items():
            stream.check("link_lost" if name.startswith(lost) else "done", name)
        await until(lambda: node.peer_id in gateway.links)
        again = Stream(gateway.links[node.peer_id])
        await again.run("again")
        again.check("done", "again")
        nursery.cancel_scope.cancel()
