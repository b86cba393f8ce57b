"""Streaming answers, clients that leave, clients that stop reading, and stopping."""

from __future__ import annotations

import pytest
import trio
import trio.lowlevel
import trio.testing

from mesh.errors import Unavailable
from mesh.http import Request, Response, Router, StreamingResponse, StreamWriter

GET_STREAM = b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n"


class Producer:
    """A streaming route that does what the test says."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.go_on = trio.Event()
        self.cancelled = trio.Event()
        self.writers: list[StreamWriter] = []
        self.script = self.two_pieces

    async def handle(self, request: Request) -> StreamingResponse:
        return StreamingResponse(self.produce, headers={"x-a": "1"})

    async def produce(self, writer: StreamWriter) -> None:
        self.writers.append(writer)
        self.started.set()
        try:
            await self.script(writer)
        except trio.Cancelled:
            self.cancelled.set()
            raise

    async def two_pieces(self, writer: StreamWriter) -> None:
        writer.headers["x-b"] = "2"
        writer.write(b"one ")
        await self.go_on.wait()
        writer.headers["x-b"] = "too late"
        writer.write(b"two")

    async def flood(self, writer: StreamWriter) -> None:
        for _ in range(2000):
            writer.write(bytes(10_000))
            await trio.lowlevel.checkpoint()
        await trio.sleep_forever()

    async def fill(self, writer: StreamWriter) -> None:
        """Until the client's socket is full and something waits, but less than the bound."""
        for _ in range(40):
            writer.write(bytes(100_000))
        await trio.sleep_forever()

    async def silence(self, writer: StreamWriter) -> None:
        await trio.sleep_forever()

    async def fail_first(self, writer: StreamWriter) -> None:
        writer.headers["x-b"] = "2"
        raise Unavailable("nobody", retry_after=5)

    async def fail_later(self, writer: StreamWriter) -> None:
        writer.write(b"one ")
        raise Unavailable("gone")

    async def break_later(self, writer: StreamWriter) -> None:
        writer.write(b"one ")
        raise RuntimeError("bug")

    async def nothing(self, writer: StreamWriter) -> None:
        pass


@pytest.fixture
def producer() -> Producer:
    return Producer()


@pytest.fixture
def router(producer) -> Router:
    async def hello(request: Request) -> Response:
        return Response(body=b"hello")

    async def slow(request: Request) -> Response:
        await producer.produce(StreamWriter(lambda data: None))
        return Response(body=b"slow")

    router = Router()
    router.add("GET", "/stream", producer.handle)
    router.add("GET", "/hello", hello)
    router.add("POST", "/slow", slow)
    return router


async def test_pieces_arrive_as_they_are_written_and_the_connection_goes_on(running, router, producer):
    async with running(router) as server:
        client = await server.connect()
        await client.send(GET_STREAM)
        status, headers = await client.head()
        assert (status, headers["content-type"], headers["x-a"], headers["x-b"]) == (200, "text/event-stream", "1", "2")
        assert await client.until(b"one \r\n") == b"4\r\none \r\n"
        producer.go_on.set()
        assert await client.until(b"0\r\n\r\n") == b"3\r\ntwo\r\n0\r\n\r\n"
        producer.writers[0].write(b"too late for this answer")
        await client.send(b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.answer())[2] == b"hello"


async def test_http_1_0_gets_no_chunks(running, router, producer):
    producer.go_on.set()
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"GET /stream HTTP/1.0\r\nconnection: keep-alive\r\n\r\n")
        _, headers = await client.head()
        assert headers["connection"] == "close"
        assert await client.rest() == b"one two"


async def test_head_of_a_stream_produces_nothing(running, router, producer):
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"HEAD /stream HTTP/1.1\r\nhost: x\r\n\r\nGET /hello HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.answer(has_body=False))[0] == 200
        assert (await client.answer())[2] == b"hello"
        assert not producer.started.is_set()


async def test_an_empty_stream_is_a_whole_answer(running, router, producer):
    producer.script = producer.nothing
    async with running(router) as server:
        client = await server.connect()
        await client.send(GET_STREAM)
        assert (await client.answer())[2] == b""


async def test_an_error_before_the_first_write_is_an_ordinary_answer(running, router, producer):
    producer.script = producer.fail_first
    async with running(router) as server:
        client = await server.connect()
        await client.send(GET_STREAM)
        status, headers, body = await client.answer()
        assert (status, headers["retry-after"], headers["x-b"]) == (503, "5", "2")
        assert headers["content-type"] == "application/json"
        assert b'"nobody"' in body


@pytest.mark.parametrize("script", ["fail_later", "break_later"])
async def test_an_error_after_the_first_write_cuts_the_answer(running, router, producer, script):
    producer.script = getattr(producer, script)
    async with running(router) as server:
        client = await server.connect()
        await client.send(GET_STREAM)
        await client.head()
        assert await client.rest() == b"4\r\none \r\n"


@pytest.mark.parametrize(
    "request_bytes",
    [
        GET_STREAM,
        b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
        GET_STREAM + b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n" * 20,
        GET_STREAM + b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\nhalf a body",
        GET_STREAM + b"nonsense\r\n\r\n",
    ],
)
@pytest.mark.parametrize("script", ["silence", "two_pieces"])
async def test_a_client_that_leaves_cancels_its_handler_in_any_state(running, router, producer, request_bytes, script):
    producer.script = getattr(producer, script)
    async with running(router) as server:
        client = await server.connect()
        await client.send(request_bytes)
        await producer.started.wait()
        await client.stream.aclose()
        with trio.fail_after(5):
            await producer.cancelled.wait()


async def test_a_client_that_leaves_behind_a_large_body_is_noticed(running, router, producer):
    producer.script = producer.silence
    async with running(router) as server:
        client = await server.connect()
        await client.send(GET_STREAM)
        await producer.started.wait()
        await client.send((b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n" + bytes(100_000)) * 2)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert not producer.cancelled.is_set()
        await client.stream.aclose()
        with trio.fail_after(5):
            await producer.cancelled.wait()


async def test_reading_ahead_is_bounded(running, router, producer):
    producer.script = producer.silence
    async with running(router) as server:
        client = await server.connect()
        await client.send(GET_STREAM)
        await producer.started.wait()
        request = b"POST /slow HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + bytes(1_000_000)
        with trio.move_on_after(0.5) as full:
            for _ in range(50):
                await client.send(request)
        assert full.cancelled_caught
        assert not producer.cancelled.is_set()


async def test_a_client_that_reads_too_slowly_for_its_stream_is_dropped(running, router, producer):
    producer.script = producer.flood
    async with running(router) as server:
        client = await server.connect()
        await client.send(GET_STREAM)
        await producer.cancelled.wait()
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()


async def test_a_client_that_stops_reading_is_dropped_after_a_while(running, router, producer):
    producer.script = producer.fill
    async with running(router, stall_seconds=0.2, buffered_bytes=100_000_000) as server:
        client = await server.connect()
        await client.send(GET_STREAM)
        await producer.cancelled.wait()
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()


async def test_a_slow_reader_gets_everything(running, router):
    body = bytes(range(256)) * 40_000

    async def large(request: Request) -> Response:
        return Response(body=body)

    router.add("GET", "/large", large)
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n" * 2)
        await trio.testing.wait_all_tasks_blocked(0.05)
        for _ in range(2):
            assert (await client.answer())[2] == body


async def test_stopping_finishes_what_is_under_way_and_closes_what_is_idle(running, router, producer):
    async with running(router) as server:
        idle = await server.connect()
        await idle.send(b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n")
        await idle.answer()
        half = await server.connect()
        await half.send(b"GET /hel")
        fresh = await server.connect()
        busy = await server.connect()
        await busy.send(GET_STREAM)
        await busy.head()
        server.stopping.set()
        for client in (idle, half, fresh):
            assert await client.rest() == b""
        with pytest.raises(OSError, match="connect"):
            await trio.open_tcp_stream("127.0.0.1", server.port)
        assert not server.stopped.is_set()
        producer.go_on.set()
        assert await busy.rest() == b"4\r\none \r\n3\r\ntwo\r\n0\r\n\r\n"
        await server.stopped.wait()


async def test_an_answer_that_begins_after_the_stop_says_that_it_is_the_last(running, router, producer):
    async def wait(request: Request) -> Response:
        producer.started.set()
        await producer.go_on.wait()
        return Response(body=b"done")

    router.add("GET", "/wait", wait)
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        await producer.started.wait()
        server.stopping.set()
        await trio.testing.wait_all_tasks_blocked(0.01)
        producer.go_on.set()
        assert (await client.answer())[1]["connection"] == "close"
        await server.stopped.wait()


async def test_a_stuck_reader_does_not_hold_up_the_end(running, router, producer):
    producer.script = producer.fill
    with trio.fail_after(10):
        async with running(router, buffered_bytes=100_000_000) as server:
            client = await server.connect()
            await client.send(GET_STREAM)
            await producer.started.wait()
            await trio.testing.wait_all_tasks_blocked(0.05)
            server.stopping.set()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not server.stopped.is_set()
    assert producer.cancelled.is_set()
