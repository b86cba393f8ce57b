"""Both ends of a circuit against a relay that answers as the test says, over real sockets."""

from __future__ import annotations

import pytest
import trio

from mesh.errors import Unavailable
from mesh.identity import Identity
from mesh.messages.relay import Fetch, Incoming, Join, Joined
from mesh.relay import PROTOCOL, joining, wire
from mesh.relay.joining import Joining
from mesh.relay.wire import read, write
from mesh.transport.libp2p import Libp2pTransport

LOCAL = ["/ip4/127.0.0.1/tcp/0"]


class Stubborn:
    """A relay that says one thing."""

    def __init__(self) -> None:
        self.heard: list = []
        self.answer: bytes | Joined | None = Joined()

    async def __call__(self, channel) -> None:
        self.heard.append(await read(channel))
        if isinstance(self.answer, bytes):
            await channel.send_all(self.answer)
        elif self.answer is not None:
            await write(channel, self.answer)
        await trio.sleep_forever()


@pytest.fixture
async def scene(monkeypatch):
    """`joining` of one peer, the stubborn relay, and its address."""
    monkeypatch.setattr(joining, "JOIN_LIMIT", 1.0)
    relay, own = Identity.generate(), Identity.generate()
    stubborn = Stubborn()
    there, here = Libp2pTransport(relay, LOCAL), Libp2pTransport(own, [])
    there.answer(PROTOCOL, stubborn)

    class Hands:
        able = True

        def __init__(self) -> None:
            self.linked_with: list = []

        async def linked(self, peer_id, _addresses) -> bool:
            self.linked_with.append(peer_id)
            return self.able

    async def nobody(_channel) -> None:
        raise AssertionError("nobody is linked here")

    hands = Hands()
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(there.run, nobody)
            await nursery.start(here.run, nobody)
            yield Joining(own.peer_id, here, hands), stubborn, there.addresses[0], hands
            nursery.cancel_scope.cancel()


TARGET = Identity.generate().peer_id


async def test_who_dials_is_linked_with_the_relay_first(scene):
    joins, stubborn, address, hands = scene
    channel = await joins.join(address, TARGET)
    assert hands.linked_with == [channel.peer_id]
    assert stubborn.heard == [Join(TARGET)]
    channel.abort()
    hands.able = False
    with pytest.raises(Unavailable, match="could not be linked"):
        await joins.join(address, TARGET)


async def test_the_relays_reason_is_told_in_one_line(scene):
    joins, stubborn, address, _ = scene
    stubborn.answer = Joined("relay_full", "it is\nfull " + "!" * 600)
    with pytest.raises(Unavailable) as raised:
        await joins.join(address, TARGET)
    assert raised.value.code == "relay_full"
    assert raised.value.message.startswith("the relay refused: it is full !!!")
    assert len(raised.value.message) < 350


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (None, "was silent"),
        (b"\xff\xff\xff\xff", "broke the protocol"),
        (b"\x00\x00\x00\x01\xc1", "broke the protocol"),
        (b"\x00\x00\x00\x05\x81\xa4type", "broke the protocol"),
    ],
)
async def test_a_relay_that_says_nothing_or_nonsense_is_given_up(scene, answer, words):
    joins, stubborn, address, _ = scene
    stubborn.answer = answer
    with pytest.raises(Unavailable, match=words):
        await joins.join(address, TARGET)


async def test_a_peer_does_not_relay_for_itself(scene):
    joins, _, address, _ = scene
    own = joins._own
    with pytest.raises(Unavailable, match="is the relay itself"):
        await joins.join(f"{address.rpartition('/')[0]}/{own}", TARGET)


async def test_halves_for_others_are_bounded(scene, monkeypatch, caplog):
    caplog.set_level("INFO", "mesh.relay.joining")
    monkeypatch.setattr(joining, "MAX_HALVES", 0)
    joins, stubborn, address, _ = scene
    await joins.fetch([address], Incoming(b"x", TARGET))
    assert stubborn.heard == []
    assert "0 are open already" in caplog.text


async def test_a_half_that_fails_is_logged_and_frees_its_place(scene, caplog):
    caplog.set_level("INFO", "mesh.relay.joining")
    joins, stubborn, address, _ = scene
    stubborn.answer = Joined("no_circuit", "too late")
    await joins.fetch([address], Incoming(b"x", TARGET))
    assert stubborn.heard == [Fetch(b"x")]
    assert "too late" in caplog.text
    assert joins._halves == 0


async def test_a_message_is_read_to_its_last_byte_and_no_further(scene):
    joins, stubborn, address, _ = scene
    stubborn.answer = wire.frame(wire._encoder.encode(Joined())) + b"what comes next"
    channel = await joins.join(address, TARGET)
    assert await channel.receive_some(100) == b"what comes next"
    channel.abort()
