"""Large messages in pieces: cut, put together, and what a bad peer can do with them."""

from __future__ import annotations

import msgspec
import pytest
import trio

from mesh.framing import FrameError
from mesh.link.codec import MAX_MESSAGE, decode_one, encode
from mesh.link.features import PIECES
from mesh.link.pieces import LEAST, PIECE, Assembly, Cutter
from mesh.messages.inference import Accepted, Delta, Done
from mesh.messages.link import Cancel, Emit, Heartbeat, Leave, Open, Piece


async def until_pending(link):
    while link._writer.pending < 1_000_000:
        await trio.lowlevel.checkpoint()


def cut(message):
    cutter = Cutter(message)
    while cutter.left:
        yield cutter.next()


@pytest.mark.parametrize("size", [PIECE + 1, 2 * PIECE, 3 * PIECE + 17, MAX_MESSAGE])
def test_a_message_survives_being_cut(size):
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    assembly = Assembly()
    wholes = [assembly.add(decode_one(piece)) for piece in cut(message)]
    assert wholes.pop() == message
    assert set(wholes) == {None}
    again = [assembly.add(decode_one(piece)) for piece in cut(message)]
    assert again[-1] == message


def test_a_small_message_is_not_cut():
    assert list(cut(bytes(PIECE))) == [bytes(PIECE)]


def test_pieces_beyond_a_message_are_refused():
    assembly = Assembly()
    for _ in range(MAX_MESSAGE // PIECE):
        assembly.add(Piece(bytes(PIECE)))
    with pytest.raises(FrameError, match="over the limit"):
        assembly.add(Piece(bytes(PIECE)))


HOSTILE = {
    "without end": [Piece(bytes(PIECE))] * (MAX_MESSAGE // PIECE + 1),
    "endless small ones": [Piece(b"x" * (LEAST - 1))],
    "empty ones": [Piece(b"")],
    "of a piece": [Piece(encode(Piece(b"x", last=True)), last=True)],
    "of garbage": [Piece(b"\xc1" * 5000, last=True)],
    "of nothing": [Piece(b"", last=True)],
    "of a second heartbeat that is none": [Piece(msgspec.msgpack.encode({"type": "heartbeat", "sent": "x"}), last=True)],
}


@pytest.mark.parametrize("pieces", HOSTILE.values(), ids=HOSTILE)
async def test_bad_pieces_end_their_link_alone(autojump_clock, kit, pieces, side):
    async with kit.links() as other, kit.raw(features=[PIECES]) as (link, raw, _):
        with trio.move_on_after(1):
            await raw.hear(Leave)
        for piece in pieces:
            await raw.say(piece)
        await link.closed.wait()
        assert "broke the protocol" in link.reason
        assert not other.near.closed.is_set()


async def test_a_piece_from_a_peer_that_did_not_tell_the_feature_ends_the_link(autojump_clock, kit):
    async with kit.raw() as (link, raw, _):
        await raw.say(Piece(encode(Leave("x")), last=True))
        await link.closed.wait()
        assert "does not know them" in link.reason


async def test_a_large_prompt_does_not_delay_what_others_ask(autojump_clock, kit, side, words, ask):
    """The memory network has no bandwidth: what counts is the order on the wire."""
    order = []
    large = "x" * 3_000_000

    class Noting(words):
        async def infer(self, request, emit):
            order.append(len(request.prompt))
            await super().infer(request, emit)

    async with kit.links(far=side(kit.far, service=Noting())) as pair, trio.open_nursery() as nursery:
        answers = {}

        async def client(prompt):
            events = answers[prompt] = []
            await pair.near.infer(ask(prompt), events.append)

        nursery.start_soon(client, large)
        await until_pending(pair.near)
        for number in range(20):
            nursery.start_soon(client, f"small {number}")
    assert order[-1] == 3_000_000
    assert [event.text for event in answers[large] if isinstance(event, Delta)] == [large]


async def test_cancelling_a_large_request_that_is_still_being_sent(autojump_clock, kit, side, words, ask):
    service = words()
    service.gate = trio.Event()
    async with kit.links(far=side(kit.far, service=service)) as pair:
        with trio.move_on_after(0):
            await pair.near.infer(ask("x" * 3_000_000), lambda _: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(pair.near.infer, ask("x" * 3_000_000), lambda _: None)
            await until_pending(pair.near)
            for _ in range(3):
                await trio.lowlevel.checkpoint()
            assert pair.near._writer.pending > 1_000_000
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        assert service.running == 0
        assert pair.far.serving == 0


async def test_events_keep_their_order_around_a_large_one(autojump_clock, kit, side, ask, done):
    texts = ["a", "b" * 500_000, "c", "d" * 40_000, "e"]

    class Mixed:
        async def infer(self, request, emit):
            emit(Accepted())
            for index, text in enumerate(texts):
                emit(Delta(index, [index], text))
            emit(done)

    async with kit.links(far=side(kit.far, service=Mixed())) as pair:
        events = []
        await pair.near.infer(ask(), events.append)
        assert [event.text for event in events if isinstance(event, Delta)] == texts
        assert isinstance(events[-1], Done)


async def test_heartbeats_and_tokens_go_between_the_pieces_of_a_large_answer(autojump_clock, kit, side, ask, done):
    class Mixed:
        async def infer(self, request, emit):
            if request.prompt == "large":
                emit(Delta(0, [0], "x" * 2_000_000))
            else:
                await trio.sleep(0.5)
                emit(Delta(0, [0], "token"))
            emit(done)

    async with kit.raw(side(kit.near, service=Mixed()), features=[PIECES]) as (_link, raw, _):
        await raw.say(Open(1, ask("large")), Open(2, ask("small")))
        await trio.sleep(2)
        while not any(isinstance(message, Emit) and message.stream == 1 for message in raw.received):
            assert await raw.more()
        kinds = [type(message) for message in raw.received]
        token = next(at for at, message in enumerate(raw.received) if isinstance(message, Emit) and message.stream == 2)
        last = len(kinds) - 1 - kinds[::-1].index(Piece)
        assert token < last
        assert Heartbeat in kinds[kinds.index(Piece) : last]
        assert Cancel not in kinds
