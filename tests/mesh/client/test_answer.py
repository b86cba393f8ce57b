"""An answer while it comes: a reader that takes its time makes the service wait."""

from __future__ import annotations

import trio

from mesh.client.answer import ENOUGH_UNREAD, AnswerStream
from mesh.messages.inference import Delta, Done, InferenceRequest, Performance, Usage
from mesh.service import room

PIECE = "x" * 1000
COUNT = 3000


class Torrent:
    def __init__(self):
        self.emitted = 0

    async def infer(self, _request, emit):
        for number in range(COUNT):
            emit(Delta(number, [number], PIECE))
            self.emitted += 1
            await room(emit)
        emit(Done("stop", Usage(1, COUNT), Performance(1, 2, 3, 4, 5)))


async def test_a_slow_reader_makes_the_service_wait(autojump_clock):
    service, stream = Torrent(), AnswerStream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.run, service, InferenceRequest(request_id="r", model="m"))
        pieces = []
        async for piece in stream:
            pieces.append(piece)
            assert len(piece) <= ENOUGH_UNREAD + len(PIECE)
            await trio.sleep(60)
            assert service.emitted * len(PIECE) <= sum(map(len, pieces)) + ENOUGH_UNREAD + len(PIECE)
    assert len(pieces) > 10
    assert "".join(pieces) == PIECE * COUNT
    assert stream.answer.usage.completion_tokens == COUNT


async def test_closing_a_stream_that_is_not_read_stops_the_service(autojump_clock):
    service, stream = Torrent(), AnswerStream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stream.run, service, InferenceRequest(request_id="r", model="m"))
        await trio.sleep(1)
        await stream.aclose()
    assert 0 < service.emitted < COUNT
