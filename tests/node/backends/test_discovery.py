from functools import partial

import pytest

from mesh.http import Response, Router, serve
from node.backends.discovery import discover
from node.backends.served import MAX_LISTED
from tests.openai_server import Server


@pytest.fixture
def listing(nursery):
    """Start a server with this list of models; its port."""

    async def start(*models: dict, status: int = 200) -> int:
        async def listed(_request):
            return Response.json({"data": list(models)}, status)

        router = Router()
        router.add("GET", "/v1/models", listed)
        return await nursery.start(partial(serve, router, "127.0.0.1", 0))

    return start


async def test_what_answers_is_found_with_its_models(listing):
    port = await listing({"id": "llama3"}, {"id": "a"}, {"id": "x" * 300})
    other = await listing({"id": "b"})
    found = await discover(set(), {port: "ollama", other: "vllm", 1: "nobody"})
    assert {(one.id, one.url, tuple(one.models)) for one in found.values()} == {
        (f"ollama-{port}", f"http://127.0.0.1:{port}", ("a", "llama3")),
        (f"vllm-{other}", f"http://127.0.0.1:{other}", ("b",)),
    }
    assert await discover({port, other}, {port: "ollama", other: "vllm"}) == {}


async def test_what_is_ours_empty_or_no_model_server_is_not(listing, nursery):
    ours = Server(["m"])
    ours.port = await nursery.start(partial(serve, ours.router(), "127.0.0.1", 0))
    ports = [ours.port, await listing(), await listing({"id": "a"}, status=500), await listing({"name": "x"})]
    assert await discover(set(), dict.fromkeys(ports, "x")) == {}


async def test_more_models_than_a_record_holds_are_cut(listing):
    port = await listing(*({"id": f"m{index:03}"} for index in range(100)))
    found = await discover(set(), {port: "ollama"})
    assert len(found[port].models) == MAX_LISTED
