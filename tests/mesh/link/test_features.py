"""Versions of the link: a peer of the first minor version, as recorded, beside one of today, in both directions."""

from __future__ import annotations

import msgspec
import pytest
import trio

from mesh.errors import BadRequest
from mesh.framing import FrameReader
from mesh.identity import Identity
from mesh.link import Link, LinkSide
from mesh.link.features import FEATURES, MINOR
from mesh.messages.inference import Delta
from mesh.messages.link import Emit, Hello, Open
from mesh.service import paced

# What version 1.0 wrote, byte for byte. The record is of `OLDER`.
OLDER = Identity.from_seed(bytes(range(32)))
HELLO = bytes.fromhex(
    "00000131dd0000000186a474797065a568656c6c6fa46d657368a474657374a8696e7374616e6365a36f6e65a67265636f726482a77061796c6f6164c49a78da"
    "1dc84d0a82401806e0ba8927884c3b40da220a21284a5732346f34a47ed37ce30fdda05d775030171da8db146d9ec5f3e8356052253fbe3b5b7a1ba2e3c28f49"
    "bb6bb1f7a2555327d135844eb8f2d5f6403a8aebf03e57ab440667ec8217e356a238613c28e612321576d45a9b359da10c5d41f287c8f1168543998471fe9583"
    "2f9d05dbbe826145453b9db88390d28019fcfc0247a53c71a97369676e6174757265c440a06f59ab3077276a7581198e5609a2ce3d7b65e59d360819f17c22ad"
    "0accf48af2458d8fa0d9171e83c51fce0def09aaca14ccf2591288556d076a07aaf4a306a56d696e6f7200a8666561747572657390"
)
BEAT = bytes.fromhex(
    "0000008edd0000000184a474797065a9686561727462656174a473656e74cb3ff8000000000000a46563686fc0a66d6f64656c7381a5776f72647387a5737461"
    "7465a57265616479a772756e6e696e6701a777616974696e6700a5736c6f747300ac70726566696c6c5f72617465cb0000000000000000ab6465636f64655f72"
    "617465cb0000000000000000a47374657000"
)
OPEN = bytes.fromhex(
    "0000005bdd0000000183a474797065a46f70656ea673747265616d01a772657175657374de0004aa726571756573745f6964a172a56d6f64656ca5776f726473"
    "a47461736baa636f6d706c6574696f6ea670726f6d7074a76f6e652074776f"
)
CANCEL = bytes.fromhex("0000001add0000000182a474797065a663616e63656ca673747265616d01")
ANSWER = bytes.fromhex(
    "000001bddd0000000483a474797065a4656d6974a673747265616d01a56576656e7485a474797065a86163636570746564a772756e6e696e6701a77761697469"
    "6e6707a46e6f6465a0a8617474656d7074730183a474797065a4656d6974a673747265616d01a56576656e7485a474797065a564656c7461a66f666673657400"
    "a9746f6b656e5f6964739100a474657874a36f6e65a663686f6963650083a474797065a4656d6974a673747265616d01a56576656e7485a474797065a564656c"
    "7461a66f666673657401a9746f6b656e5f6964739101a474657874a374776fa663686f6963650083a474797065a4656d6974a673747265616d01a56576656e74"
    "87a474797065a4646f6e65ad66696e6973685f726561736f6ea473746f70a5757361676582ad70726f6d70745f746f6b656e7301b1636f6d706c6574696f6e5f"
    "746f6b656e7302ab706572666f726d616e636585af70726566696c6c5f74696d655f6d7301ae6465636f64655f74696d655f6d7302ad71756575655f74696d65"
    "5f6d7303b1746f6b656e735f7065725f7365636f6e6404aa62617463685f73697a6505a772756e6e696e6700a777616974696e6700aa656d62656464696e6773"
    "c0"
)
KINDS = {
    "prove", "proof", "keys", "hello", "refused", "heartbeat", "records", "leave", "open", "emit", "cancel", "upgrade",
    "upgrade_offer", "drained", "unknown",
}  # fmt: skip
"""What version 1.0 understands."""


class Older:
    """The far end as version 1.0 is: its bytes, and no word that it does not know."""

    def __init__(self, channel):
        self.channel = channel
        self.frames = FrameReader()
        self.messages = []

    async def read(self):
        data = await self.channel.receive_some(65536)
        assert data, "the newer side ended the link"
        for body in self.frames.feed(data):
            self.messages += msgspec.msgpack.decode(body)
        assert {message["type"] for message in self.messages} <= KINDS

    async def until(self, kind):
        while not (found := [message for message in self.messages if message["type"] == kind]):
            await self.read()
        return found[0]


@pytest.fixture
def older(kit):
    """(link, older): the newer side's link and the older side, after their hellos."""
    kit.far = OLDER
    return kit


async def joined(kit, nursery, here, there, side):
    far = Older(there)
    await there.send_all(HELLO)
    link = Link(here, side, dialled=True)
    await nursery.start(link.run)
    await there.send_all(BEAT)
    hello = await far.until("hello")
    assert (hello["minor"], set(hello["features"])) == (MINOR, FEATURES)
    return link, far


async def test_an_older_peer_asks_a_newer_one(autojump_clock, older, side, words):
    kit = older
    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        link, far = await joined(kit, nursery, here, there, side(kit.near, service=words()))
        assert (link.features, link.hello.minor, link.record.name) == (frozenset(), 0, "an older node")
        await there.send_all(OPEN)
        while not any(message.get("event", {}).get("type") == "done" for message in far.messages):
            await far.read()
        wanted = msgspec.msgpack.decode(ANSWER[4:])
        wanted[0]["event"]["running"] = 1
        heard = [message for message in far.messages if message["type"] == "emit"]
        # What is not said has a default, of which version 1.0 knows this one; what it does not know, it skips.
        known = [{"choice": 0} | one["event"] for one in heard]
        assert [{key: said[key] for key in one["event"]} for one, said in zip(wanted, known, strict=True)] == [
            one["event"] for one in wanted
        ]
        assert {one["stream"] for one in heard} == {1}
        nursery.cancel_scope.cancel()


async def test_an_older_peer_gets_a_long_and_a_large_answer_whole_and_may_cancel(autojump_clock, older, side, done):
    class Large:
        cancelled = False

        async def infer(self, _request, emit):
            for number in range(40):
                emit(Delta(number, [number], "x" * 10_000))
            emit(Delta(40, [40], "y" * 1_000_000))
            try:
                await trio.sleep_forever()
            finally:
                self.cancelled = True

    kit, service = older, Large()
    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        _link, far = await joined(kit, nursery, here, there, side(kit.near, service=service))
        await there.send_all(OPEN)
        while sum(message["type"] == "emit" for message in far.messages) < 41:
            await far.read()
        texts = [message["event"]["text"] for message in far.messages if message["type"] == "emit"]
        assert texts == ["x" * 10_000] * 40 + ["y" * 1_000_000]
        await there.send_all(CANCEL)
        await trio.sleep(0.1)
        assert service.cancelled
        nursery.cancel_scope.cancel()


async def test_a_newer_peer_asks_an_older_one(autojump_clock, older, side, ask):
    kit, events = older, []
    async with kit.channels() as (here, there), trio.open_nursery() as nursery:
        link, far = await joined(kit, nursery, here, there, side(kit.near))

        ended = trio.Event()

        async def client(prompt):
            await link.infer(ask(prompt), events.append)
            ended.set()

        nursery.start_soon(client, "one two")
        assert await far.until("open") == msgspec.msgpack.decode(OPEN[4:])[0]
        assert link.load["words"].running == 1
        await there.send_all(ANSWER)
        await ended.wait()
        assert [event.text for event in events if isinstance(event, Delta)] == ["one", "two"]
        far.messages.clear()
        nursery.start_soon(client, "x" * 1_000_000)
        assert (await far.until("open"))["request"]["prompt"] == "x" * 1_000_000
        nursery.cancel_scope.cancel()


async def test_a_newer_peer_takes_any_amount_from_an_older_one_and_gives_no_credit(autojump_clock, kit, ask, done):
    async with kit.raw() as (link, raw, _), trio.open_nursery() as nursery:
        events = []
        nursery.start_soon(link.infer, ask(), paced(events.append, trio.sleep_forever))
        opened = await raw.hear(Open)
        for number in range(100):
            await raw.say(Emit(opened.stream, Delta(number, [number], "x" * 10_000)))
        await raw.say(Emit(opened.stream, done))
        await trio.sleep(0.5)
        assert len(events) == 101
        assert {message["type"] for message in msgspec.to_builtins(raw.received)} <= KINDS


@pytest.mark.parametrize("features", [set(), {"credit-2"}, {"pieces"}, FEATURES])
@pytest.mark.parametrize("newer", ["near", "far"])
async def test_sides_of_different_features_work_together(autojump_clock, kit, side, words, ask, features, newer):
    limited = {"near": {}, "far": {}}
    limited["far" if newer == "near" else "near"]["features"] = frozenset(features)
    near, far = side(kit.near, service=words(), **limited["near"]), side(kit.far, service=words(), **limited["far"])
    async with kit.links(near, far) as pair:
        assert pair.near.features == pair.far.features == features
        for link in (pair.near, pair.far):
            events = []
            prompt = " ".join(["word"] * 5_000 + ["x" * 1_000_000])
            await link.infer(ask(prompt), events.append)
            assert " ".join(event.text for event in events if isinstance(event, Delta)) == prompt
            with pytest.raises(BadRequest):
                await link.infer(ask("x" * 5_000_000), events.append)


async def test_features_of_the_future_are_ignored(autojump_clock, kit, words, ask, side):
    async with kit.raw(side(kit.near, service=words()), features=["teleport", "credit-2"]) as (link, raw, _):
        assert link.features == {"credit-2"}
        await raw.say(Open(1, ask("one")))
        assert (await raw.hear(Emit)).stream == 1


async def test_both_tell_the_minor_version_and_keep_the_owners_features(autojump_clock, kit, hello):
    def ours() -> Hello:
        return msgspec.structs.replace(hello(kit.near), features=["direct"])

    async with kit.links(LinkSide(hello=ours)) as pair:
        assert pair.near.hello.minor == pair.far.hello.minor == MINOR
        assert {"direct", *FEATURES} == set(pair.far.hello.features)
