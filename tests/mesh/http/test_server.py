"""The server as clients on raw sockets see it."""

from __future__ import annotations

import socket

import msgspec
import pytest
import trio
import trio.testing

from mesh.errors import Busy, Misconfigured, Unavailable
from mesh.http import Request, Response, Router, StreamingResponse, StreamWriter, serve

GET = b"GET /hello HTTP/1.1\r\nhost: x\r\n\r\n"


async def hello(request: Request) -> Response:
    return Response.json({"hello": request.query.get("who", "nobody")})


async def echo(request: Request) -> Response:
    return Response(body=request.body, content_type="application/octet-stream")


@pytest.fixture
def router() -> Router:
    router = Router()
    router.add("GET", "/hello", hello)
    router.add("POST", "/echo", echo)
    return router


def post(body: bytes, *, headers: bytes = b"") -> bytes:
    return b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n%b\r\n%b" % (len(body), headers, body)


async def test_keep_alive_answers_several_requests_on_one_connection(running, router):
    async with running(router) as server:
        client = await server.connect()
        for name in (b"a", b"b"):
            await client.send(b"GET /hello?who=" + name + b" HTTP/1.1\r\nhost: x\r\n\r\n")
            status, headers, body = await client.answer()
            assert (status, msgspec.json.decode(body)) == (200, {"hello": name.decode()})
            assert headers["content-type"] == "application/json"
            assert headers["date"].endswith("GMT")
            assert "connection" not in headers


async def test_pipelined_requests_are_answered_in_order(running, router):
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"".join(b"GET /hello?who=%d HTTP/1.1\r\nhost: x\r\n\r\n" % number for number in range(300)))
        for number in range(300):
            assert msgspec.json.decode((await client.answer())[2]) == {"hello": str(number)}


async def test_a_request_may_arrive_byte_by_byte(running, router):
    async with running(router) as server:
        client = await server.connect()
        for byte in post(b"slow"):
            await client.send(bytes([byte]))
        assert (await client.answer())[2] == b"slow"


async def test_a_chunked_body_is_joined(running, router):
    async with running(router) as server:
        client = await server.connect()
        head = b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        await client.send(head + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\ntrailer: z\r\n\r\n" + GET)
        assert (await client.answer())[2] == b"abcde"
        assert (await client.answer())[0] == 200


async def test_connection_close_and_http_1_0(running, router):
    async with running(router) as server:
        for request in (b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", b"GET /hello HTTP/1.0\r\n\r\n"):
            client = await server.connect()
            await client.send(request)
            status, headers, _ = await client.answer()
            assert (status, headers["connection"]) == (200, "close")
            assert await client.rest() == b""
        client = await server.connect()
        await client.send(b"GET /hello HTTP/1.0\r\nconnection: keep-alive\r\n\r\n" * 2)
        for _ in range(2):
            assert (await client.answer())[1]["connection"] == "keep-alive"


async def test_head_sends_the_length_but_no_body(running, router):
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"HEAD /hello HTTP/1.1\r\nhost: x\r\n\r\n" + GET)
        status, headers, _ = await client.answer(has_body=False)
        assert status == 200
        full = await client.answer()
        assert headers["content-length"] == str(len(full[2]))


async def test_100_continue_is_sent_only_to_who_waits_for_it(running, router):
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
        assert (await client.head())[0] == 100
        await client.send(b"abc")
        assert (await client.answer())[2] == b"abc"
        await client.send(post(b"xyz", headers=b"expect: 100-continue\r\n"))
        assert (await client.answer())[2] == b"xyz"


async def test_100_continue_waits_for_the_answer_before_it(running, router):
    release = trio.Event()

    async def wait(request: Request) -> Response:
        await release.wait()
        return Response(body=b"first")

    router.add("GET", "/wait", wait)
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n")
        await client.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n")
        await trio.testing.wait_all_tasks_blocked(0.05)
        release.set()
        assert (await client.answer())[2] == b"first"
        assert (await client.head())[0] == 100
        await client.send(b"abc")
        assert (await client.answer())[2] == b"abc"


async def test_an_expected_body_over_the_limit_is_refused_before_it_is_sent(running, router):
    async with running(router, body_bytes=10) as server:
        client = await server.connect()
        await client.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 11\r\nexpect: 100-continue\r\n\r\n")
        assert (await client.answer())[0] == 413


async def test_a_client_that_sends_20_mb_gets_to_read_the_413(running, router):
    async with running(router) as server:
        client = await server.connect()
        await client.send(post(bytes(20_000_000)))  # all of it, before it reads anything
        status, headers, body = await client.answer()
        assert (status, headers["connection"]) == (413, "close")
        error = msgspec.json.decode(body)["error"]
        assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "body_too_large", None)
        assert "8388608 bytes" in error["message"]
        assert await client.rest() == b""


async def test_a_chunked_body_over_the_limit_is_refused(running, router):
    async with running(router, body_bytes=1000) as server:
        client = await server.connect()
        await client.send(
            b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n" + (b"64\r\n" + bytes(100) + b"\r\n") * 11
        )
        assert (await client.answer())[0] == 413


async def test_chunk_extensions_do_not_escape_the_body_limit(running, router):
    async with running(router, body_bytes=1000) as server:
        client = await server.connect()
        await client.send(b"POST /echo HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n1;")
        for _ in range(100):
            await client.send(b"x" * 1000)
        assert (await client.answer())[0] == 413


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 20_000,
        b"GET /" + b"x" * 20_000,
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"a: b\r\n" * 4000,
        b"GET / HTTP/1.1\r\nhost: x\r\nbig: " + b"x" * 20_000 + b"\r\n\r\n",
    ],
)
async def test_a_head_over_the_limit_is_a_431(running, router, head):
    async with running(router) as server:
        client = await server.connect()
        await client.send(head[:9000])
        await trio.testing.wait_all_tasks_blocked(0.01)
        await client.send(head[9000:])
        status, _, body = await client.answer()
        assert (status, msgspec.json.decode(body)["error"]["code"]) == (431, "head_too_large")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", 505),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\nhost: y\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost : x\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: b\r\n c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nhost: x\r\na: b\x00c\r\n\r\n", 400),
        (b"GET / HTTP/1.1\nhost: x\n\n", 400),
        (b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"GET /?" + b"a&" * 101 + b" HTTP/1.1\r\nhost: x\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", 400),
    ],
)
async def test_what_cannot_be_understood_is_refused_and_the_connection_closed(running, router, request_bytes, status):
    async with running(router) as server:
        client = await server.connect()
        await client.send(request_bytes)
        got, headers, body = await client.answer()
        assert (got, headers["connection"]) == (status, "close")
        assert msgspec.json.decode(body)["error"]["code"] == "bad_http"
        assert await client.rest() == b""


async def test_a_fault_after_a_good_request_does_not_cost_its_answer(running, router):
    async with running(router) as server:
        client = await server.connect()
        await client.send(GET + b"nonsense\r\n\r\n" + GET)
        assert (await client.answer())[0] == 200
        assert (await client.answer())[0] == 400
        assert await client.rest() == b""


@pytest.mark.parametrize("sent", [b"GET / HT", b"POST /echo HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nabc"])
async def test_a_slow_request_is_a_408(running, router, sent):
    async with running(router, head_seconds=0.1, body_seconds=0.1) as server:
        client = await server.connect()
        await client.send(sent)
        status, _, body = await client.answer()
        assert (status, msgspec.json.decode(body)["error"]["code"]) == (408, "request_timeout")
        assert await client.rest() == b""


async def dribble(client) -> None:
    while True:
        await client.send(b"a: b\r\n")
        await trio.sleep(0.02)


async def test_dribbling_does_not_stretch_the_time_for_the_headers(running, router):
    async with running(router, head_seconds=0.3, close_seconds=0.1) as server:
        client = await server.connect()
        await client.send(b"GET / HTTP/1.1\r\nhost: x\r\n")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(dribble, client)
            assert (await client.answer())[0] == 408
            nursery.cancel_scope.cancel()


async def test_an_idle_connection_is_closed_without_a_word(running, router):
    async with running(router, idle_seconds=0.1) as server:
        client = await server.connect()
        assert await client.rest() == b""
        client = await server.connect()
        await client.send(GET)
        await client.answer()
        assert await client.rest() == b""


async def test_unknown_paths_and_methods(running, router):
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"GET /nowhere HTTP/1.1\r\nhost: x\r\n\r\n")
        status, _, body = await client.answer()
        error = msgspec.json.decode(body)["error"]
        assert (status, error["type"], error["code"], error["param"]) == (404, "invalid_request_error", "not_found", None)
        assert "/nowhere" in error["message"]
        await client.send(b"DELETE /hello HTTP/1.1\r\nhost: x\r\n\r\n")
        status, headers, body = await client.answer()
        assert (status, headers["allow"]) == (405, "GET, HEAD, OPTIONS")
        assert msgspec.json.decode(body)["error"]["code"] == "method_not_allowed"
        await client.send(b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n")
        assert (await client.answer())[0] == 404


async def test_mesh_errors_become_openai_errors_and_others_stay_inside(running, router, caplog):
    async def busy(request: Request) -> Response:
        raise Busy("full", retry_after=0.2)

    async def broken(request: Request) -> Response:
        raise RuntimeError("the secret path /etc/x")

    async def grouped(request: Request) -> Response:
        raise ExceptionGroup("nursery", [Unavailable("nobody", retry_after=2.1)])

    async def misconfigured(request: Request) -> Response:
        raise Misconfigured("bad file /etc/x")

    for name, handler in (("busy", busy), ("broken", broken), ("grouped", grouped), ("misconfigured", misconfigured)):
        router.add("GET", f"/{name}", handler)
    async with running(router) as server:
        client = await server.connect()

        async def get(name: str) -> tuple[int, dict[str, str], dict[str, str]]:
            await client.send(f"GET /{name} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            status, headers, body = await client.answer()
            return status, headers, msgspec.json.decode(body)["error"]

        status, headers, error = await get("busy")
        assert (status, headers["retry-after"]) == (429, "1")
        assert error == {"message": "full", "type": "rate_limit_error", "param": None, "code": "busy"}
        assert (await get("grouped"))[:2][0] == 503
        assert (await get("grouped"))[1]["retry-after"] == "3"
        for name in ("broken", "misconfigured"):
            caplog.clear()
            status, _, error = await get(name)
            assert (status, error["code"]) == (500, "internal_error")
            assert "/etc" not in error["message"]
            assert caplog.records[0].exc_info is not None


@pytest.mark.parametrize(
    "headers", [{"x-a": "b\r\nset-cookie: c"}, {"x-a\r\nb": "c"}, {"content-length": "1"}, {"x-a": "\u2603"}]
)
async def test_headers_that_would_break_the_answer_are_refused(running, router, caplog, headers):
    async def inject(request: Request) -> Response:
        return Response(body=b"x", headers=headers)

    async def stream(request: Request) -> StreamingResponse:
        async def produce(writer: StreamWriter) -> None:
            writer.headers.update(headers)
            writer.write(b"x")

        return StreamingResponse(produce)

    router.add("GET", "/inject", inject)
    router.add("GET", "/stream", stream)
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"GET /inject HTTP/1.1\r\nhost: x\r\n\r\n")
        status, got, _ = await client.answer()
        assert status == 500
        assert "set-cookie" not in got
        client = await server.connect()
        await client.send(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
        with pytest.raises(trio.BrokenResourceError):
            await client.rest()
        assert client.buffer == b""


async def test_connections_over_the_cap_are_told_so(running, router):
    async with running(router, connections=2) as server:
        first = await server.connect()
        second = await server.connect()
        await first.send(GET)
        await first.answer()
        third = await server.connect()
        await third.send(GET)
        status, headers, body = await third.answer()
        assert (status, headers["retry-after"], headers["connection"]) == (503, "1", "close")
        assert msgspec.json.decode(body)["error"]["code"] == "too_many_connections"
        assert await third.rest() == b""
        await second.stream.aclose()
        await third.stream.aclose()
        await trio.sleep(0.1)
        fourth = await server.connect()
        await fourth.send(GET)
        assert (await fourth.answer())[0] == 200


async def test_accepted_sockets_do_not_delay_small_writes(running, router, monkeypatch):
    undelayed: list[int] = []
    real = socket.socket.setsockopt

    def spy(self: socket.socket, level: int, option: int, value: int) -> None:
        if (level, option, value) == (socket.IPPROTO_TCP, socket.TCP_NODELAY, 1):
            undelayed.append(self.getsockname()[1])
        real(self, level, option, value)

    monkeypatch.setattr(socket.socket, "setsockopt", spy)
    async with running(router) as server:
        client = await server.connect()
        await client.send(GET)
        await client.answer()
        assert server.port in undelayed


async def test_local_pages_may_read_answers_and_others_may_not(running, router):
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"GET /hello HTTP/1.1\r\nhost: x\r\norigin: http://localhost:3000\r\n\r\n")
        assert (await client.answer())[1]["access-control-allow-origin"] == "http://localhost:3000"
        await client.send(b"GET /hello HTTP/1.1\r\nhost: x\r\norigin: http://localhost.evil.example\r\n\r\n")
        assert "access-control-allow-origin" not in (await client.answer())[1]
        await client.send(
            b"OPTIONS /echo HTTP/1.1\r\nhost: x\r\norigin: http://127.0.0.1:3000\r\n"
            b"access-control-request-method: POST\r\naccess-control-request-headers: content-type\r\n\r\n"
        )
        status, headers, _ = await client.answer()
        assert (status, headers["access-control-allow-headers"]) == (204, "content-type")
        assert "POST" in headers["access-control-allow-methods"]


@pytest.mark.parametrize("upgrade", [b"upgrade: h2c\r\n", b"upgrade: websocket\r\n"])
async def test_an_upgrade_that_nobody_wants_is_answered_as_plain_http(running, router, upgrade):
    async with running(router) as server:
        client = await server.connect()
        await client.send(b"GET /hello HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\n" + upgrade + b"\r\n" + GET)
        assert (await client.answer())[0] == 200
        assert (await client.answer())[0] == 200
        await client.send(post(b"abc", headers=b"connection: upgrade\r\n" + upgrade))
        assert (await client.answer())[2] == b"abc"


async def test_a_taken_port_is_named_with_the_way_out(router):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Misconfigured, match=rf"port {port} .* taken.*--port"):
            await serve(router, "127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "a" * 300])
async def test_an_address_that_is_not_ours_is_named(router, host):
    with pytest.raises(Misconfigured, match="--host"):
        await serve(router, host, 0)


async def test_localhost_is_served_on_every_address_that_it_has(running, router):
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve, router, "localhost", 0)
        for *_, address in await trio.socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM):
            async with await trio.open_tcp_stream(address[0], port) as stream:
                await stream.send_all(GET)
                assert (await stream.receive_some(100)).startswith(b"HTTP/1.1 200")
        nursery.cancel_scope.cancel()
