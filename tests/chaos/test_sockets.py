"""A WebSocket client of the harness, against a server that says what it is told to."""

from __future__ import annotations

import json
import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import trio
from websockets.trio.server import serve

from tests.chaos.sockets import ask_socket, socket_body
from tests.chaos.traffic import Answer, Truth, make_body

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from websockets.trio.server import ServerConnection

Message = dict[str, Any]
STARTED: Message = {"type": "inference_started", "node": "somebody", "resume_token": "token"}
DONE: Message = {"type": "inference_complete", "finish_reason": "length", "usage": {"completion_tokens": 3}}
TRUTH = Truth("one two three", 3, "length")


def chunk(index: int, text: str) -> Message:
    return {"type": "inference_chunk", "chunk": text, "index": index, "tokens": 1}


@asynccontextmanager
async def gateways(*scripts: Sequence[Message]) -> AsyncIterator[tuple[list[str], list[Message]]]:
    """One for each script, which it says before it is gone. Their addresses, and what they were asked."""
    asked: list[Message] = []

    async def say(script: Sequence[Message], socket: ServerConnection) -> None:
        asked.append(json.loads(await socket.recv()))
        for message in script:
            await socket.send(json.dumps(message))

    async with trio.open_nursery() as nursery:
        servers = [await nursery.start(partial(serve, partial(say, script), port=0, host="127.0.0.1")) for script in scripts]
        yield [f"http://127.0.0.1:{server.listeners[0].socket.getsockname()[1]}" for server in servers], asked
        nursery.cancel_scope.cancel()


def answer() -> Answer:
    source = random.Random(1)
    return Answer(socket_body(source, make_body(source, 1, "m", 3)))


async def test_a_stream_goes_on_where_its_gateway_was_lost() -> None:
    parts = ([STARTED, chunk(0, "one"), chunk(1, " two")], [chunk(2, " three"), DONE])
    got = answer()
    async with gateways(*parts) as (urls, asked):
        await ask_socket(urls[0], got, others=urls[1:])
    assert got.fault(TRUTH) == ""
    assert (got.node, got.lost, len(got.pieces)) == ("somebody", 1, 3)
    assert asked[0]["parameters"]["seed"] == got.seed
    assert asked[1] == {"type": "resume", "resume_token": "token", "index": 2}


async def test_a_token_twice_and_a_stream_that_is_not_found_are_faults() -> None:
    twice = ([STARTED, chunk(0, "one"), chunk(0, "one")], [DONE])
    lost = ([STARTED, chunk(0, "one")], [{"type": "error", "message": "no such stream", "code": "stream_not_found"}])
    for parts, fault in ((twice, "token 0 where 1 was due"), (lost, "stream_not_found"), ((lost[0],), "cut")):
        got = answer()
        async with gateways(*parts) as (urls, _):
            await ask_socket(urls[0], got, others=urls[1:])
        assert fault in got.fault(TRUTH)
