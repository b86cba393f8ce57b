"""Servers that somebody else runs, over real HTTP."""

import json
from functools import partial

import pytest
import trio

from mesh.errors import BackendFailed, BadRequest, Busy, Unavailable
from mesh.http import Response, Router, StreamingResponse, serve
from mesh.messages.inference import Delta, Done, InferenceRequest, Said
from mesh.openai.remote.client import RemoteClient
from node.backends import served
from node.backends.remote import RemoteBackend
from node.backends.servers import OpenAIServer
from node.backends.settings import BackendSettings
from node.backends.unit import Unit
from tests.openai_server import Server


def backend_at(url: str, **settings) -> RemoteBackend:
    unit = Unit(settings=BackendSettings(type="openai", **settings), id="far", check_interval=0.1)
    return RemoteBackend(unit, OpenAIServer(url + "/v1", RemoteClient(), unit.settings.tasks))


@pytest.fixture
def server(nursery):
    async def start(*models: str, router: Router | None = None, **more) -> Server:
        built = Server(list(models), **more)
        built.port = await nursery.start(partial(serve, router or built.router(), "127.0.0.1", 0))
        return built

    return start


def request(model: str = "a", **more) -> InferenceRequest:
    return InferenceRequest(request_id="r", model=model, messages=[{"role": "user", "content": "hi"}], **more)


async def until(condition) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - what changes is outside
            await trio.sleep(0.02)


async def test_its_models_are_ours_and_answers_come_through(server, nursery):
    far = await server("a", "b")
    backend = backend_at(far.url)
    await nursery.start(backend.run)
    assert [(entry.id, entry.state, entry.backend) for entry in backend.entries()] == [
        ("a", "ready", "openai"),
        ("b", "ready", "openai"),
    ]
    events: list = []
    await backend.infer(request("b"), events.append)
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "one two three"
    assert far.requests[-1].model == "b"
    assert isinstance(events[-1], Done)


async def test_one_that_answers_is_asked_for_nothing_else_meanwhile(nursery, server):
    listed, gate, first = 0, trio.Event(), trio.Event()

    async def models(_request):
        nonlocal listed
        listed += 1
        return Response.json({"data": [{"id": "a"}]})

    async def answer(writer):
        writer.write(b'data: {"choices": [{"delta": {"content": "one"}}]}\n\n')
        await gate.wait()
        writer.write(b"data: [DONE]\n\n")

    async def chat(_request):
        return StreamingResponse(answer)

    router = Router()
    router.add("GET", "/v1/models", models)
    router.add("POST", "/v1/chat/completions", chat)
    backend = backend_at((await server(router=router)).url)
    await nursery.start(backend.run)
    async with trio.open_nursery() as asking:
        asking.start_soon(backend.infer, request(), lambda event: first.set() if isinstance(event, Delta) else None)
        await first.wait()
        await trio.sleep(0.2)  # a look that had begun ends
        before = listed
        await trio.sleep(0.5)
        assert (listed, backend.state) == (before, "ready")
        gate.set()
    await until(lambda: listed > before)


async def test_going_on_behind_a_text_is_said_of_a_server_and_then_asked_of_it(server, nursery):
    far = await server("a")
    plain, able = backend_at(far.url), backend_at(far.url, continues=True)
    for backend in (plain, able):
        await nursery.start(backend.run)
    assert [backend.entry.capabilities.continues for backend in (plain, able)] == [False, True]
    begun = request(said=Said("one", 1))
    await able.infer(begun, [].append)
    assert far.requests[-1].messages[-1] == {"role": "assistant", "content": "one"}
    before = len(far.requests)
    for backend, asked in ((plain, begun), (plain, request(prior=[[1]])), (able, request(prior=[[1]]))):
        with pytest.raises(Unavailable) as caught:
            await backend.infer(asked, [].append)
        assert caught.value.code == "cannot_go_on"
    assert len(far.requests) == before
    far.error = BadRequest("the last message must be the user's")
    with pytest.raises(Unavailable, match="does not go on with an answer: the last message must"):
        await able.infer(begun, [].append)


async def test_one_that_is_gone_is_failed_and_ready_again_when_it_is_back(server, nursery):
    async with trio.open_nursery() as life:
        far = Server(["a"])
        far.port = await life.start(partial(serve, far.router(), "127.0.0.1", 0))
        backend = backend_at(far.url)
        await nursery.start(backend.run)
        life.cancel_scope.cancel()
    await until(lambda: backend.state == "failed")
    assert "cannot be reached" in backend.status().last_error
    with pytest.raises(Unavailable):
        await backend.infer(request(), lambda _: None)
    nursery.start_soon(partial(serve, far.router(), "127.0.0.1", far.port))
    await until(lambda: backend.state == "ready")


async def test_a_request_that_finds_it_dead_has_it_looked_at_at_once(server, nursery):
    async with trio.open_nursery() as life:
        far = Server(["a"])
        far.port = await life.start(partial(serve, far.router(), "127.0.0.1", 0))
        unit = Unit(settings=BackendSettings(type="openai"), id="far", check_interval=1000)
        backend = RemoteBackend(unit, OpenAIServer(far.url, RemoteClient()))
        await nursery.start(backend.run)
        life.cancel_scope.cancel()
    with pytest.raises(BackendFailed):
        await backend.infer(request(), lambda _: None)
    await until(lambda: backend.state == "failed")


async def test_more_models_than_a_record_holds_must_be_named(server, nursery):
    names = [f"m{index}" for index in range(served.MAX_LISTED + 1)]
    far = await server(*names)
    backend = backend_at(far.url)
    await nursery.start(backend.run)
    assert (backend.state, backend.entries()) == ("failed", [])
    assert f"it lists {len(names)} models; name in `models`" in backend.status().last_error
    named = backend_at(far.url, models=["m3"])
    await nursery.start(named.run)
    assert [entry.id for entry in named.entries()] == ["m3"]


async def test_requests_over_the_limit_are_told_that_it_is_busy(server, nursery):
    far = await server("a", gates={0: trio.Event()})
    backend = backend_at(far.url, max_requests=2)
    await nursery.start(backend.run)
    async with trio.open_nursery() as asking:
        for _ in range(2):
            asking.start_soon(backend.infer, request(), lambda _: None)
        await until(lambda: backend.activity.in_flight == 2)
        assert backend.load.running == 2
        with pytest.raises(Busy):
            await backend.infer(request(), lambda _: None)
        asking.cancel_scope.cancel()
    assert backend.activity.in_flight == 0


async def test_what_it_refuses_to_understand_is_left_out_from_then_on(nursery):
    seen: list[set[str]] = []

    async def answer(asked):
        body = set(json.loads(asked.body))
        seen.append(body)
        for name in ("top_k", "max_tokens"):
            if name in body:
                return Response.json({"error": {"message": f"Unsupported parameter: '{name}'", "param": name}}, 400)
        return Response.json({"choices": [{"message": {"content": "all"}, "finish_reason": "stop"}]})

    async def listed(_asked):
        return Response.json({"data": [{"id": "a"}]})

    router = Router()
    router.add("POST", "/v1/chat/completions", answer)
    router.add("GET", "/v1/models", listed)
    port = await nursery.start(partial(serve, router, "127.0.0.1", 0))
    backend = backend_at(f"http://127.0.0.1:{port}")
    await nursery.start(backend.run)
    for _ in range(2):
        events: list = []
        await backend.infer(request(top_k=50, max_tokens=5), events.append)
        assert isinstance(events[-1], Done)
    assert len(seen) == 4
    assert "max_completion_tokens" in seen[-1]


async def test_a_task_that_it_cannot_do_is_refused(server, nursery):
    far = await server("a")
    backend = backend_at(far.url)
    await nursery.start(backend.run)
    with pytest.raises(BadRequest) as caught:
        await backend.infer(InferenceRequest(request_id="r", model="a", task="embedding", inputs=["x"]), lambda _: None)
    assert caught.value.code == "unsupported_task"


async def test_a_server_of_embeddings_is_ready_when_it_makes_one(nursery):
    async def embed(asked):
        body = json.loads(asked.body)
        return Response.json({"data": [{"index": index, "embedding": [1.0]} for index, _ in enumerate(body["input"])]})

    router = Router()
    router.add("POST", "/v1/embeddings", embed)
    port = await nursery.start(partial(serve, router, "127.0.0.1", 0))
    backend = backend_at(f"http://127.0.0.1:{port}", models=["near"], upstream_model="far", tasks=["embedding"])
    await nursery.start(backend.run)
    (entry,) = backend.entries()
    assert (entry.state, entry.capabilities.tasks) == ("ready", ["embedding"])
    events: list = []
    await backend.infer(InferenceRequest(request_id="r", model="near", task="embedding", inputs=["x", "y"]), events.append)
    assert len(events[-1].embeddings) == 2
