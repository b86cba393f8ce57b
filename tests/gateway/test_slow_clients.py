"""A client that does not read makes its own node wait, through the gateway and the link; nobody else notices."""

from __future__ import annotations

import json
import re

import httpx2
import pytest
import trio
from websockets.client import ClientProtocol
from websockets.frames import Opcode
from websockets.uri import parse_uri

from gateway.app import Gateway
from mesh.http import serve
from mesh.messages.inference import Accepted, Delta, Done, Performance, Usage
from mesh.service import room

PIECES = 6_000
PIECE = "x" * 990
DONE = Done("stop", Usage(1, PIECES), Performance(1, 2, 3, 4, 5))
BODY = b'{"model": "m", "prompt": "hi", "stream": true, "max_tokens": %d}' % PIECES


class Torrent:
    """Emits PIECES numbered deltas, no faster than they are read."""

    def __init__(self):
        self.emitted = 0

    async def step(self, _request, emit):
        emit(Accepted(running=1))
        for number in range(PIECES):
            emit(Delta(number, [number], f"<{number}>{PIECE}"))
            self.emitted += 1
            await room(emit)
            if number % 16 == 0:
                await trio.lowlevel.checkpoint()
        emit(DONE)

    async def has_stopped(self):
        """Wait until it emits no more."""
        with trio.fail_after(20):
            before = -1
            while before != self.emitted or not before:
                before = self.emitted
                await trio.sleep(0.3)


async def slow_connection(port):
    """A client whose kernel takes little for it."""
    socket = trio.socket.socket()
    socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, 32 * 1024)
    await socket.connect(("127.0.0.1", port))
    return trio.SocketStream(socket)


async def read_until(stream, end):
    received = bytearray()
    while end not in received[-100_000:]:
        data = await stream.receive_some(65536)
        assert data, "the gateway dropped the client"
        received += data
    return bytes(received)


def numbers(text):
    return [int(number) for number in re.findall(r"<(\d+)>", text)]


@pytest.fixture
async def http():
    async with httpx2.AsyncClient(timeout=20, trust_env=False) as client:
        yield client


@pytest.fixture
async def port(mesh, nursery):
    gateway = Gateway(mesh.gateway.registry)
    return await nursery.start(serve, gateway.router, "127.0.0.1", 0)


async def test_a_stream_that_is_not_read_pauses_at_its_node_and_loses_nothing(mesh, port, http):
    torrent = Torrent()
    await mesh.node(torrent.step)
    async with await slow_connection(port) as client:
        await client.send_all(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY))
        await torrent.has_stopped()
        assert torrent.emitted < PIECES
        paused = torrent.emitted
        for _ in range(3):
            answer = await http.post(f"http://127.0.0.1:{port}/v1/completions", json={"model": "m", "prompt": "hi"})
            assert answer.status_code == 200
        assert torrent.emitted == paused
        with trio.fail_after(30):
            received = await read_until(client, b"data: [DONE]")
    assert numbers(received.decode()) == [*range(PIECES)]


async def test_a_websocket_that_is_not_read_pauses_at_its_node_and_loses_nothing(mesh, port):
    torrent = Torrent()
    await mesh.node(torrent.step)
    protocol = ClientProtocol(parse_uri(f"ws://127.0.0.1:{port}/ws/me"))
    async with await slow_connection(port) as client:
        protocol.send_request(protocol.connect())
        await client.send_all(b"".join(protocol.data_to_send()))
        protocol.receive_data(await client.receive_some(65536))
        ask = {"type": "inference", "model": "m", "inputs": "hi", "stream": True, "request_id": "r"}
        ask["parameters"] = {"max_new_tokens": PIECES}
        protocol.send_text(json.dumps(ask).encode())
        await client.send_all(b"".join(protocol.data_to_send()))
        await torrent.has_stopped()
        assert torrent.emitted < PIECES
        messages = []
        with trio.fail_after(30):
            while not messages or messages[-1]["type"] != "inference_complete":
                protocol.receive_data(await client.receive_some(65536))
                frames = [frame for frame in protocol.events_received() if getattr(frame, "opcode", None) is Opcode.TEXT]
                messages += [json.loads(frame.data) for frame in frames]
    assert [message["index"] for message in messages if message["type"] == "inference_chunk"] == [*range(PIECES)]
