import msgspec
import pytest
import trio
import trio.testing

from mesh.errors import Conflict, NotFound, TimedOut, Unavailable
from mesh.messages.inference import Done, InferenceRequest, Said
from node.backends.mock import MockBackend, MockSettings
from node.service import NodeService


def request(model: str = "a", number: int = 0, **fields) -> InferenceRequest:
    return InferenceRequest(request_id=f"r{number}", model=model, task="completion", prompt="hi", **fields)


@pytest.fixture
async def serve(nursery):
    async def begin(*models: str, aliases: dict[str, list[str]] | None = None, **knobs) -> NodeService:
        backends = [MockBackend(model, MockSettings(**knobs)) for model in models]
        for backend in backends:
            backend.entry = msgspec.structs.replace(backend.entry, aliases=(aliases or {}).get(backend.entry.id, []))
            await nursery.start(backend.run)
        return NodeService(backends)

    return begin


async def ignore(service: NodeService, asked: InferenceRequest) -> None:
    await service.infer(asked, lambda event: None)


async def test_a_request_reaches_the_model_by_id_or_alias(serve) -> None:
    service = await serve("a", "b", aliases={"b": ["small", "a"]})
    for model in ("a", "b", "small"):
        events = []
        await service.infer(request(model), events.append)
        assert isinstance(events[-1], Done)
    assert [entry.id for entry in service.entries()] == ["a", "b"]
    assert service.load()["b"].step > service.load()["a"].step, "the alias `a` of b must not beat the id a"


async def test_the_load_says_how_long_each_model_has_been_ready(serve, autojump_clock) -> None:
    service = await serve("a")
    await trio.sleep(7.5)
    assert service.load()["a"].uptime == 7


async def test_an_unknown_model_is_named_with_what_there_is(serve) -> None:
    service = await serve("a", "b")
    with pytest.raises(NotFound, match="serves a, b") as caught:
        await ignore(service, request("c"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_an_alias_of_two_models_is_refused_with_both_names(serve) -> None:
    service = await serve("a", "b", aliases={"a": ["small"], "b": ["small"]})
    with pytest.raises(Conflict, match="a and b"):
        await ignore(service, request("small"))


async def test_a_model_that_goes_on_behind_tokens_does_not_begin_anew_behind_a_text(serve) -> None:
    service = await serve("a")
    assert service.gives_tokens(request())
    assert not service.gives_tokens(request("nobody"))
    with pytest.raises(Unavailable) as caught:
        await ignore(service, request(said=Said("one", 1)))
    assert (caught.value.code, service.running) == ("cannot_go_on", 0)


async def test_one_request_id_runs_once_at_a_time(serve) -> None:
    service = await serve("a", hang_after_tokens=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ignore, service, request())
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(Conflict) as caught:
            await ignore(service, request())
        assert caught.value.code == "request_in_progress"
        assert service.running == 1
        nursery.cancel_scope.cancel()
    assert service.running == 0


async def test_a_finished_id_may_come_again(serve) -> None:
    service = await serve("a")
    await ignore(service, request())
    await ignore(service, request())


async def test_draining_takes_nothing_new_and_waits_for_the_rest(serve, autojump_clock) -> None:
    service = await serve("a", tokens_per_second=10, length=11)
    await service.idle()
    ended = []

    async def finish(number: int) -> None:
        await ignore(service, request(number=number))
        ended.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(finish, number)
        await trio.sleep(0.5)
        service.drain()
        with pytest.raises(Unavailable) as caught:
            await ignore(service, request(number=9))
        assert caught.value.code == "draining"
        await service.idle()
        await trio.testing.wait_all_tasks_blocked()
        assert sorted(ended) == [0, 1, 2]


async def test_the_deadline_ends_a_request(serve, autojump_clock) -> None:
    service = await serve("a", hang_after_tokens=1)
    with pytest.raises(TimedOut, match="500 ms"):
        await ignore(service, request(deadline_ms=500))
    assert service.load()["a"].running == 0
    service = await serve("a")
    await ignore(service, request(deadline_ms=500))


async def test_changes_of_every_backend_are_heard(serve) -> None:
    service = await serve("a", "b")
    heard = []
    service.on_change(lambda: heard.append(1))
    for backend in service.backends.values():
        backend.changed()
    assert len(heard) == 2


async def test_a_model_of_two_backends_is_the_first_ones_and_the_log_says_so_once(serve, caplog) -> None:
    service = await serve("a", "a")
    first, second = service._backends
    for backend, digest in ((first, "one"), (second, "other")):
        backend.entry = msgspec.structs.replace(backend.entry, weights_digest=digest, backend=f"mock-{digest}")
    for _ in range(3):
        assert [entry.weights_digest for entry in service.entries()] == ["one"]
    (record,) = caplog.records
    assert "two backends have a model a, with other or unknown weights" in record.getMessage()
    assert "requests go to the first, mock-one" in record.getMessage()
    second.entry = msgspec.structs.replace(second.entry, weights_digest="one", backend="mock-same")
    service.entries()
    assert "with the same weights" in caplog.records[-1].getMessage()
