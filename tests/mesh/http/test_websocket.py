"""WebSockets, with the `websockets` client and with raw frames."""

from __future__ import annotations

from contextlib import suppress

import pytest
import trio
import trio.lowlevel
import trio.testing
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.trio.client import connect

from mesh.errors import BadRequest
from mesh.http import Request, Response, Router, WebSocket, WebSocketResponse

UPGRADE = (
    b"GET /ws/raw HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    b"sec-websocket-version: 13\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
)


def frame(data: bytes, opcode: int = 1) -> bytes:
    """A masked client frame with an all-zero mask."""
    assert len(data) < 126
    return bytes([0x80 | opcode, 0x80 | len(data), 0, 0, 0, 0]) + data


class Handler:
    """A WebSocket route that echoes, or does what the test says."""

    def __init__(self) -> None:
        self.script = self.echo
        self.started = trio.Event()
        self.ended = trio.Event()
        self.cancelled = trio.Event()
        self.release = trio.Event()

    async def handle(self, request: Request) -> WebSocketResponse:
        if request.params["client"] == "nobody":
            raise BadRequest("no such client")
        return WebSocketResponse(self.run)

    async def run(self, socket: WebSocket) -> None:
        self.started.set()
        try:
            await self.script(socket)
        except trio.Cancelled:
            self.cancelled.set()
            raise
        self.ended.set()

    async def echo(self, socket: WebSocket) -> None:
        while True:
            message = await socket.receive()
            socket.send(message if isinstance(message, str) else f"{len(message)} bytes")

    async def deaf(self, socket: WebSocket) -> None:
        await trio.sleep_forever()

    async def wait_then_echo(self, socket: WebSocket) -> None:
        await self.release.wait()
        await self.echo(socket)

    async def flood(self, socket: WebSocket) -> None:
        while True:
            socket.send("x" * 10_000)
            await trio.lowlevel.checkpoint()

    async def goodbye(self, socket: WebSocket) -> None:
        await socket.receive()
        await socket.close(4000, "enough")
        with pytest.raises(trio.EndOfChannel):
            await socket.receive()
        socket.send("goes nowhere")

    async def finish_after_stop(self, socket: WebSocket) -> None:
        try:
            while True:
                await socket.receive()
        except trio.EndOfChannel:
            socket.send("one last thing")

    async def refuse(self, socket: WebSocket) -> None:
        raise BadRequest("not like this")

    async def fail(self, socket: WebSocket) -> None:
        raise RuntimeError("a secret")


@pytest.fixture
def handler() -> Handler:
    return Handler()


@pytest.fixture
def router(handler) -> Router:
    async def plain(request: Request) -> Response:
        return Response(body=b"plain")

    router = Router()
    router.add("GET", "/ws/{client}", handler.handle)
    router.add("GET", "/plain", plain)
    return router


def url(server, name: str = "a") -> str:
    return f"ws://127.0.0.1:{server.port}/ws/{name}"


async def test_messages_of_both_kinds_whole_and_in_fragments(running, router):
    async with running(router) as server, connect(url(server)) as client:
        await client.send("grüß dich")
        assert await client.recv() == "grüß dich"
        await client.send(b"\xff" * 1000)
        assert await client.recv() == "1000 bytes"
        await client.send(["one ", "", "two"])
        assert await client.recv() == "one two"
        await client.ping()


async def test_a_message_that_comes_with_the_handshake_is_not_lost(running, router):
    async with running(router) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n" + frame(b"early"))
        assert (await client.head())[0] == 101
        assert await client.exactly(7) == b"\x81\x05early"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"GET /ws/a HTTP/1.1\r\nhost: x\r\n\r\n", 426),
        (UPGRADE.replace(b"MDEy", b"M") + b"\r\n", 400),
        (UPGRADE.replace(b"version: 13", b"version: 12") + b"\r\n", 400),
        (UPGRADE.replace(b"/ws/raw", b"/ws/nobody") + b"\r\n", 400),
        (UPGRADE + b"origin: https://evil.example\r\n\r\n", 403),
        (UPGRADE + b"origin: http://localhost:5000\r\n\r\n", 101),
        (UPGRADE + b"origin: https://x\r\n\r\n", 101),
    ],
)
async def test_handshakes(running, router, request_bytes, status):
    async with running(router) as server:
        client = await server.connect()
        await client.send(request_bytes)
        assert (await client.head())[0] == status


async def test_a_path_that_is_no_websocket_answers_in_http(running, router):
    async with running(router) as server:
        with pytest.raises(InvalidStatus, match="200"):
            async with connect(f"ws://127.0.0.1:{server.port}/plain"):
                pass


async def test_a_message_over_the_limit_closes_with_1009(running, router, handler):
    async with running(router) as server, connect(url(server), max_size=None) as client:
        await client.send("x" * (1024 * 1024))
        assert len(await client.recv()) == 1024 * 1024
        await client.send("x" * (1024 * 1024 + 1))
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.protocol.close_code == 1009
        await handler.cancelled.wait()


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"\x81\x80\x00\x00\x00\x00\xff"[:6] + frame(b"\xff\xfe"), 1007),
        (frame(b"x", opcode=3), 1002),
        (b"\x81\x01x", 1002),
        (frame(b"x", opcode=0), 1002),
    ],
)
async def test_broken_frames_close_with_their_code(running, router, handler, bad, code):
    async with running(router) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n")
        await client.head()
        await client.send(bad)
        received = await client.rest()
        assert code.to_bytes(2, "big") in received
        await handler.cancelled.wait()


@pytest.mark.parametrize("script", ["echo", "deaf"])
async def test_the_handler_is_cancelled_when_the_client_closes(running, router, handler, script):
    handler.script = getattr(handler, script)
    async with running(router) as server:
        async with connect(url(server)) as client:
            await handler.started.wait()
        assert client.protocol.close_code == 1000
        await handler.cancelled.wait()


async def test_the_handler_is_cancelled_when_the_client_vanishes(running, router, handler):
    handler.script = handler.deaf
    async with running(router) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n")
        await handler.started.wait()
        await client.stream.aclose()
        await handler.cancelled.wait()


async def test_a_client_that_answers_no_ping_is_dropped(running, router, handler):
    handler.script = handler.deaf
    async with running(router, ping_seconds=0.1) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n")
        await handler.cancelled.wait()


async def test_a_client_that_answers_pings_stays(running, router, handler):
    handler.script = handler.wait_then_echo
    async with running(router, ping_seconds=0.1) as server, connect(url(server), ping_interval=None) as client:
        await trio.sleep(0.5)
        handler.release.set()
        await client.send("still here")
        assert await client.recv() == "still here"


async def test_a_slow_reader_is_closed_with_1013(running, router, handler):
    handler.script = handler.flood
    async with running(router) as server, connect(url(server), max_queue=1) as client:
        await handler.cancelled.wait()
        with suppress(ConnectionClosed):
            while True:
                await client.recv()
        assert client.protocol.close_code == 1013


async def test_a_reader_that_never_reads_again_is_dropped(running, router, handler):
    handler.script = handler.flood
    async with running(router, close_seconds=0.2) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n")
        await handler.cancelled.wait()
        server.stopping.set()
        await server.stopped.wait()


async def test_what_a_slow_handler_has_not_received_is_bounded_and_not_lost(running, router, handler):
    handler.script = handler.wait_then_echo
    async with running(router) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n")
        await client.head()
        sent = 0
        with trio.move_on_after(0.5) as full:
            while True:
                await client.send(b"\x82\xff" + (100_000).to_bytes(8, "big") + bytes(4 + 100_000))
                sent += 1
        assert full.cancelled_caught
        handler.release.set()
        for _ in range(sent):
            assert await client.until(b"bytes") == b"\x81\x0c100000 bytes"


async def test_a_client_that_leaves_a_deaf_handler_with_a_full_queue_is_noticed(running, router, handler):
    handler.script = handler.deaf
    async with running(router) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n" + frame(b"x") * 100)
        await handler.started.wait()
        await client.send(frame(b"x") * 100)
        await trio.testing.wait_all_tasks_blocked(0.05)
        await client.stream.aclose()
        await handler.cancelled.wait()


async def test_the_handler_may_close(running, router, handler):
    handler.script = handler.goodbye
    async with running(router) as server, connect(url(server)) as client:
        await client.send("bye")
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.protocol.close_code, client.protocol.close_reason) == (4000, "enough")
        await handler.ended.wait()


@pytest.mark.parametrize(("script", "code", "reason"), [("refuse", 1008, "not like this"), ("fail", 1011, "internal error")])
async def test_errors_of_the_handler(running, router, handler, script, code, reason):
    handler.script = getattr(handler, script)
    async with running(router) as server, connect(url(server)) as client:
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert (client.protocol.close_code, client.protocol.close_reason) == (code, reason)


async def test_stopping_lets_the_handler_finish(running, router, handler):
    handler.script = handler.finish_after_stop
    async with running(router) as server, connect(url(server)) as client:
        await client.send("hello")
        server.stopping.set()
        assert await client.recv() == "one last thing"
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.protocol.close_code == 1001
        await server.stopped.wait()


async def test_cancelling_the_server_does_not_wait_for_a_client(running, router, handler):
    handler.script = handler.deaf
    async with running(router) as server:
        client = await server.connect()
        await client.send(UPGRADE + b"\r\n")
        await handler.started.wait()
    assert handler.cancelled.is_set()
