from __future__ import annotations

from contextlib import suppress

import pytest
import trio
from libp2p.io.exceptions import ConnectionClosedError
from websockets.exceptions import ConnectionClosed
from websockets.trio.client import connect

from mesh.transport.libp2p.websocket import MAX_MESSAGE, WebSocketCarrier


@pytest.fixture
async def served():
    """`url, carriers`: where a carrier is accepted, and those that were."""
    carriers: list[WebSocketCarrier | Exception] = []
    async with trio.open_nursery() as nursery:

        async def accept(stream):
            carrier = WebSocketCarrier(stream)
            nursery.start_soon(carrier.run)
            try:
                await carrier.accept()
                carriers.append(carrier)
                while data := await carrier.read():
                    await carrier.write(data)
            except ConnectionClosedError as error:
                carriers.append(error)
            finally:
                carrier.abort()

        listeners = await nursery.start(trio.serve_tcp, accept, 0)
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}", carriers
        nursery.cancel_scope.cancel()


async def test_the_bytes_of_any_websocket_program_are_read_across_messages(served):
    where, _ = served
    async with connect(f"ws://{where}/", proxy=None, compression=None) as socket:
        await socket.send([b"in ", b"three ", b"pieces"])
        await socket.send(b", and more")
        received = b""
        while len(received) < 25:
            message = await socket.recv()
            assert isinstance(message, bytes)
            received += message
        assert received == b"in three pieces, and more"


async def test_a_ping_is_answered(served):
    where, _ = served
    async with connect(f"ws://{where}/", proxy=None, compression=None) as socket:
        with trio.fail_after(20):
            await (await socket.ping()).wait()


async def test_closing_ends_the_bytes(served):
    where, carriers = served
    async with connect(f"ws://{where}/", proxy=None, compression=None) as socket:
        await socket.send(b"x")
        assert await socket.recv() == b"x"
    with trio.fail_after(20):
        while not carriers[0].closed:  # noqa: ASYNC110 - a test's own polling
            await trio.sleep(0.01)


async def test_a_message_over_the_bound_ends_the_connection(served):
    where, carriers = served
    async with connect(f"ws://{where}/", proxy=None, compression=None, max_size=None) as socket:
        with suppress(ConnectionClosed):
            await socket.send(bytes(MAX_MESSAGE + 1))
        with trio.fail_after(20), pytest.raises(ConnectionClosed):
            await socket.recv()
    assert carriers[0].closed


async def test_text_is_not_bytes(served):
    where, _ = served
    async with connect(f"ws://{where}/", proxy=None, compression=None) as socket:
        await socket.send("ignored")
        await socket.send(b"seen")
        assert await socket.recv() == b"seen"


@pytest.mark.parametrize(
    "request_bytes", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"\x00" * 100_000, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 500]
)
async def test_a_request_for_something_else_is_turned_away(served, request_bytes):
    where, carriers = served
    host, port = where.split(":")
    stream = await trio.open_tcp_stream(host, int(port))
    async with stream:
        with suppress(trio.BrokenResourceError), trio.fail_after(20):
            await stream.send_all(request_bytes)
            await stream.send_eof()
            while await stream.receive_some():
                pass
    assert isinstance(carriers[0], ConnectionClosedError)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"\xff" * 5000])
async def test_a_server_without_websocket_is_left(answer):
    async def serve(stream):
        await stream.receive_some()
        await stream.send_all(answer)
        await stream.aclose()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, serve, 0)
        port = listeners[0].socket.getsockname()[1]
        carrier = WebSocketCarrier(await trio.open_tcp_stream("127.0.0.1", port))
        nursery.start_soon(carrier.run)
        with trio.fail_after(20), pytest.raises(ConnectionClosedError):
            await carrier.connect("127.0.0.1", port)
        carrier.abort()
        nursery.cancel_scope.cancel()
