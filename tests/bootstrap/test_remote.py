import socket

import pytest
import trio

from bootstrap.remote import DEFAULT_GATEWAY, Gateway, gateway_url
from mesh.errors import BackendFailed, BadRequest, Misconfigured, TimedOut, Unavailable


@pytest.mark.parametrize(
    ("text", "url"),
    [("127.0.0.1:8000/", DEFAULT_GATEWAY), ("https://a.example", "https://a.example"), ("[::1]:1", "http://[::1]:1")],
)
def test_urls(text, url):
    assert gateway_url(text) == url


@pytest.mark.parametrize("text", ["", "ftp://a", "http://", "http://a:99999", "http://a:b", "http://a:0", "http://[::1"])
def test_what_is_no_url(text):
    with pytest.raises(Misconfigured, match=r"--gateway: .* is not a URL; it looks like http://127.0.0.1:8000"):
        gateway_url(text)


async def test_get(small_mesh):
    assert (await Gateway(small_mesh.url).get("/health"))["status"] == "healthy"
    assert [entry["id"] for entry in await Gateway(small_mesh.url).models()] == ["m", "n"]


async def test_nobody_there():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(Unavailable, match=f"no gateway answers at {url}; start one with `mesh up`"):
            await Gateway(url).get("/health")


async def test_the_gateways_own_error_is_passed_on(fake):
    with pytest.raises(BadRequest, match="no route /nothing") as caught:
        await Gateway(fake.url).get("/nothing")
    assert (caught.value.status, caught.value.code) == (404, "not_found")


@pytest.mark.parametrize("answer", [(200, b"<html>"), (200, [1]), (404, b""), (500, {"error": "text"}), (503, {"detail": 1})])
async def test_somebody_else_answers(fake, answer):
    fake.answers["/health"] = answer
    with pytest.raises(Unavailable, match="is not a gateway of infermesh"):
        await Gateway(fake.url).get("/health")


async def test_a_gateway_that_is_silent(monkeypatch):
    monkeypatch.setattr("bootstrap.remote.ANSWER", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(TimedOut, match=r"was silent for 0\.1 s"):
            await Gateway(f"http://127.0.0.1:{silent.getsockname()[1]}").get("/health")


async def test_a_connection_that_breaks(nursery):
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def hang_up(stream):
        await stream.receive_some()

    nursery.start_soon(trio.serve_listeners, hang_up, [listener])
    with pytest.raises(Unavailable, match=r"the connection to .* broke"):
        await Gateway(f"http://127.0.0.1:{listener.socket.getsockname()[1]}").get("/health")
    nursery.cancel_scope.cancel()


async def test_a_chat_streams(fake):
    fake.say("Hel", "", "lo")
    pieces = []
    await Gateway(fake.url).chat("m", [{"role": "user", "content": "hi"}], pieces.append)
    assert "".join(pieces) == "Hello"
    assert fake.asked == [{"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}]


async def test_a_chat_that_breaks_off(fake):
    fake.say("Hel", end=None)
    pieces = []
    with pytest.raises(BackendFailed, match="broke off"):
        await Gateway(fake.url).chat("m", [], pieces.append)
    assert pieces == ["Hel"]


async def test_an_error_inside_a_stream(fake):
    fake.say("Hel", end='{"error": {"message": "the worker died", "code": "worker_died"}}')
    with pytest.raises(Unavailable, match="the worker died"):
        await Gateway(fake.url).chat("m", [], lambda _: None)


async def test_an_error_instead_of_a_stream(fake):
    fake.chats.append((404, {"error": {"message": "no model x", "code": "model_not_found"}}))
    with pytest.raises(BadRequest, match="no model x"):
        await Gateway(fake.url).chat("x", [], lambda _: None)


async def test_a_stream_of_something_else(fake):
    fake.chats.append(["hello"])
    with pytest.raises(Unavailable, match="is not a gateway"):
        await Gateway(fake.url).chat("x", [], lambda _: None)
