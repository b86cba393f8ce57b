"""The older API: a peer that asks and serves, over memory and once over real sockets."""

from __future__ import annotations

import asyncio

import pytest
import trio

from mesh.client import LibP2PInferenceNode, MeshClient, PeerCapability
from mesh.client.handlers import MAX_RUNNING, Handlers
from mesh.errors import BackendFailed, BadRequest, Busy, Misconfigured, NotFound, Unavailable
from mesh.messages.inference import Delta, Done, InferenceRequest


async def echo(request):
    text = request.prompt or request.messages[-1]["content"]
    for word in str(text).split():
        yield word + " "


async def broken(request):
    yield "one "
    raise RuntimeError("a fault of the handler")


@pytest.fixture
def node_in():
    def make(here, **options):
        fields = {"bootstrap_peers": here.bootstrap.addresses, "enable_mdns": False, "mesh": "test", **options}
        return LibP2PInferenceNode(fields, transport=here.transport)

    return make


async def found(client, model):
    with trio.fail_after(30):
        while model not in {name for node in client.nodes() for name in node.models}:  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.05)


async def test_one_serves_and_another_asks(village, node_in, autojump_clock):
    async with village() as here:
        serving, asking = node_in(here), node_in(here)
        serving.register_capability(PeerCapability.TEXT_GENERATION)
        serving.register_model("echo", echo)
        await serving.start()
        await asking.start()
        answer = await asking.submit_inference_request(
            task="text-generation", model="echo", inputs="four words are here", parameters={"max_tokens": 3}
        )
        assert (answer.text, answer.finish_reason, answer.node) == ("four words are ", "length", serving.peer_id)
        assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 3)
        with pytest.raises(Unavailable, match="chat request"):
            await asking.submit_inference_request("chat", "echo", "hello")
        serving.register_capability(PeerCapability.CHAT)
        await trio.sleep(1)
        assert (await asking.submit_inference_request("chat", "echo", "hello you")).text == "hello you "
        await serving.stop()
        await asking.stop()
        await asking.stop()


async def test_two_of_them_ask_each_other_and_themselves(village, node_in, autojump_clock):
    async with village() as here:
        one, two = node_in(here), node_in(here)
        await one.start()
        await two.start()
        one.register_model("first", echo)
        two.register_model("second", echo)
        messages = [{"role": "user", "content": "over there"}]
        assert (await one.submit_inference_request("conversational", "second", messages)).node == two.peer_id
        assert (await two.submit_inference_request("completion", "first", "over there")).node == one.peer_id
        assert (await one.submit_inference_request("completion", "first", "at home")).text == "at home "
        await one.stop()
        await two.stop()


async def test_a_model_without_a_handler_is_known_and_not_asked(village, node_in, autojump_clock):
    async with village() as here:
        node = node_in(here)
        await node.start()
        node.register_model("later")
        async with here.client() as client:
            await found(client, "later")
            assert [(model.id, model.state) for model in await client.models()] == [("later", "loading")]
            node.register_model("later", echo)
            assert (await client.chat("later", [{"role": "user", "content": "now"}])).text == "now "
        await node.stop()


async def test_a_handler_that_fails_ends_its_request_alone(village, node_in, autojump_clock, caplog):
    async with village() as here:
        node = node_in(here)
        node.register_model("broken", broken)
        node.register_model("echo", echo)
        await node.start()
        async with here.client() as client:
            await found(client, "echo")
            with pytest.raises(BackendFailed, match="in the middle"):
                await client.complete("broken", "x")
            assert (await client.complete("echo", "well")).text == "well "
        assert "a fault of the handler" in caplog.text
        await node.stop()


async def test_misuse_is_named(village, node_in, autojump_clock):
    with pytest.raises(Misconfigured, match="'bootstrap' is not an option; there are: bootstrap_peers"):
        LibP2PInferenceNode({"bootstrap": []})
    with pytest.raises(Misconfigured, match="bootstrap: "):
        await LibP2PInferenceNode({"bootstrap_peers": ["nowhere"]}).start()
    async with village() as here:
        node = node_in(here)
        with pytest.raises(RuntimeError, match="start"):
            _ = node.addresses
        await node.start()
        assert node.addresses
        with pytest.raises(RuntimeError, match="started already"):
            await node.start()
        with pytest.raises(BadRequest, match="'image-to-text' is not known; there are: chat, completion"):
            await node.submit_inference_request("image-to-text", "m", "x")
        await node.stop()


async def test_a_start_that_cannot_listen_fails_with_the_reason():
    node = LibP2PInferenceNode({"enable_mdns": False, "listen": ["/ip4/203.0.113.1/tcp/1"]})
    with pytest.raises(Misconfigured, match=r"203\.0\.113\.1"):
        await node.start()
    await node.stop()


async def test_handlers_are_bounded(autojump_clock):
    async def endless(request):
        while True:
            await trio.sleep(1)
            yield "x"

    changes = []
    handlers = Handlers(lambda: changes.append(handlers.load()["endless"].running))
    handlers.register("endless", endless)
    request = InferenceRequest(request_id="r", model="endless", task="completion", prompt="go")
    async with trio.open_nursery() as nursery:
        for _ in range(MAX_RUNNING):
            nursery.start_soon(handlers.infer, request, lambda _event: None)
        await trio.sleep(3)
        with pytest.raises(Busy, match="run here already"):
            await handlers.infer(request, lambda _event: None)
        nursery.cancel_scope.cancel()
    assert changes[-1] == 0
    assert max(changes) == MAX_RUNNING
    with pytest.raises(NotFound):
        await handlers.infer(InferenceRequest(request_id="r", model="other"), lambda _event: None)
    events = []
    await handlers.infer(InferenceRequest(request_id="r", model="endless", max_tokens=2, prompt="go"), events.append)
    assert [type(event) for event in events[1:]] == [Delta, Delta, Done]
    assert events[-1].performance.tokens_per_second == pytest.approx(1)


async def test_over_real_sockets_from_a_program_without_trio():
    node = LibP2PInferenceNode({"enable_mdns": False, "mesh": "sockets-test", "listen": ["/ip4/127.0.0.1/tcp/0"]})
    node.register_model("echo", echo)
    await node.start()

    def program(address: str) -> tuple[list[str], str, list[str], list[str]]:
        with MeshClient.sync(bootstrap=[address], mdns=False, mesh="sockets-test") as client:
            models = [model.id for model in client.models()]
            question = [{"role": "user", "content": "good day"}]

            async def from_asyncio() -> str:
                return (await asyncio.to_thread(client.chat, "echo", question)).text

            text = asyncio.run(from_asyncio())
            pieces = list(client.stream("echo", [{"role": "user", "content": "piece by piece"}]))
            with pytest.raises(NotFound):
                client.chat("other", [{"role": "user", "content": "x"}])
            return models, text, pieces, [seen.peer_id for seen in client.nodes()]

    with trio.fail_after(30):
        models, text, pieces, nodes = await trio.to_thread.run_sync(program, node.addresses[0])
    assert (models, text, "".join(pieces), nodes) == (["echo"], "good day ", "piece by piece ", [node.peer_id])
    await node.stop()


def test_a_blocking_client_that_cannot_start_says_why():
    with pytest.raises(Misconfigured, match="bootstrap: "), MeshClient.sync(bootstrap=["nowhere"]):
        pass
