"""Servers of others that come and go, on real ports."""

import pytest
import trio

from mesh.errors import NotFound
from mesh.http import Response, Router, serve
from mesh.messages.inference import Delta, InferenceRequest
from mesh.openai.remote.client import RemoteClient
from node.backends import found as module
from node.backends.found import FoundBackend
from node.backends.remote import RemoteBackend
from node.backends.servers import OpenAIServer
from node.backends.settings import BackendSettings
from node.backends.unit import Unit
from node.service import NodeService

WORD = b'data: {"choices": [{"delta": {"content": "hello"}, "finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'


class Somebody:
    """A server with these models, which can be stopped and started."""

    def __init__(self, nursery: trio.Nursery, *models: str) -> None:
        self.models = list(models)
        self.port = 0
        self.gate = trio.Event()
        self.gate.set()
        self._nursery = nursery
        self._scope = trio.CancelScope()

    async def start(self) -> int:
        router = Router()
        router.add("GET", "/v1/models", self._list)
        router.add("POST", "/v1/chat/completions", self._answer)
        self._scope = trio.CancelScope()
        self.port = await self._nursery.start(self._run, router)
        return self.port

    def stop(self) -> None:
        self._scope.cancel()

    async def _run(self, router: Router, *, task_status: trio.TaskStatus[int]) -> None:
        with self._scope:
            await serve(router, "127.0.0.1", self.port, task_status=task_status)

    async def _list(self, _: object) -> Response:
        return Response.json({"data": [{"id": model} for model in self.models]})

    async def _answer(self, _: object) -> Response:
        await self.gate.wait()
        return Response(200, WORD, "text/event-stream")


def remote(settings: BackendSettings) -> RemoteBackend:
    return RemoteBackend(Unit(settings=settings, id=settings.id), OpenAIServer(settings.url, RemoteClient()))


@pytest.fixture
def looking(nursery):
    async def start(*ports: int) -> FoundBackend:
        backend = FoundBackend(remote, (), ports=dict.fromkeys(ports, "ollama"), every=0.05)
        await nursery.start(backend.run)
        return backend

    return start


async def until(condition) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - what changes is outside
            await trio.sleep(0.02)


def names(backend: FoundBackend) -> list[str]:
    return [entry.id for entry in backend.entries()]


async def say(backend: FoundBackend, model: str) -> str:
    events: list = []
    asked = InferenceRequest(request_id="r", model=model, messages=[{"role": "user", "content": "hi"}])
    await backend.infer(asked, events.append)
    return "".join(event.text for event in events if isinstance(event, Delta))


async def test_what_is_there_is_served_from_the_start(nursery, looking):
    one, two = Somebody(nursery, "a", "shared"), Somebody(nursery, "b", "shared")
    backend = await looking(await one.start(), await two.start())
    assert sorted(names(backend)) == ["a", "b", "shared"]
    assert (backend.status().state, backend.entry.state, backend.load.state) == ("ready", "ready", "ready")
    assert set(backend.loads()) == {"a", "b", "shared"}
    assert await say(backend, "b") == "hello"
    with pytest.raises(NotFound):
        await say(backend, "c")


async def test_what_is_started_later_appears_and_what_is_gone_goes_away_and_may_come_back(nursery, looking):
    server = Somebody(nursery, "a")
    server.stop()
    port = await Somebody(nursery, "other").start()
    backend = await looking(await server.start(), port)
    changes: list[int] = []
    backend.changed = lambda: changes.append(len(backend.entries()))
    assert sorted(names(backend)) == ["a", "other"]
    server.stop()
    await until(lambda: names(backend) == ["other"])
    await server.start()
    await until(lambda: sorted(names(backend)) == ["a", "other"])
    assert await say(backend, "a") == "hello"
    assert {1, 2} <= set(changes)


async def test_another_list_of_models_is_taken_over(nursery, looking):
    server = Somebody(nursery, "a")
    backend = await looking(await server.start())
    server.models = ["a", "b"]
    await until(lambda: names(backend) == ["a", "b"])
    assert await say(backend, "b") == "hello"


async def test_one_look_without_an_answer_is_no_end(nursery, looking, monkeypatch):
    server = Somebody(nursery, "a")
    backend = await looking(await server.start())
    looks: list[int] = []
    discover = module.discover

    async def fails_once(own, ports):
        looks.append(len(backend.entries()))
        return {} if len(looks) == 1 else await discover(own, ports)

    monkeypatch.setattr(module, "discover", fails_once)
    await until(lambda: len(looks) > 3)
    assert set(looks) == {1}


async def test_one_that_works_on_a_request_is_not_asked_for_its_list(nursery, looking, monkeypatch):
    server = Somebody(nursery, "a")
    backend = await looking(await server.start())
    server.gate = trio.Event()
    spared: list[bool] = []
    discover = module.discover

    async def noted(own, ports):
        spared.append(server.port in own)
        return await discover(own, ports)

    monkeypatch.setattr(module, "discover", noted)
    async with trio.open_nursery() as asking:
        asking.start_soon(say, backend, "a")
        await until(lambda: backend._servers[server.port].backend.activity.in_flight)
        await until(lambda: spared.count(True) > 3)
        assert names(backend) == ["a"]
        server.gate.set()
    await until(lambda: not spared[-1])


async def test_nothing_found_is_no_fault_of_a_node(looking):
    backend = await looking(1)
    service = NodeService([backend])
    assert (service.backends, service.entries(), service.load()) == ({}, [], {})
    assert (backend.status().running, backend.entry.id, backend.load.state) == (False, "found", "loading")


async def test_its_own_ports_are_left_alone(nursery):
    port = await Somebody(nursery, "a").start()
    backend = FoundBackend(remote, {port}, ports={port: "ollama"}, every=0.05)
    await nursery.start(backend.run)
    assert backend.entries() == []
