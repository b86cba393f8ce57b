"""The client in a mesh of memory: finding, asking, retrying, streaming, leaving."""

from __future__ import annotations

import pytest
import trio

from mesh.client import Answer, MeshClient, Patience, answer, asking
from mesh.errors import BackendFailed, BadRequest, Busy, Misconfigured, NotFound, TimedOut, Unavailable
from mesh.identity import Identity
from mesh.messages.inference import Accepted, InferenceRequest

HELLO = [{"role": "user", "content": "Hello"}]


async def linked(client: MeshClient, count: int) -> None:
    with trio.fail_after(30):
        while len(client.nodes()) < count:  # noqa: ASYNC110 - the client tells nobody
            await trio.sleep(0.1)


async def read(stream: answer.AnswerStream) -> list[str]:
    return [piece async for piece in stream]


async def test_models_nodes_and_a_chat(village, service, autojump_clock):
    async with village() as here:
        node = await here.node()
        async with here.client() as client:
            assert [model.id for model in await client.models()] == ["m"]
            (seen,) = client.nodes()
            assert (seen.peer_id, seen.name, seen.models) == (node.peer_id, "node", ["m"])
            got = await client.chat("m", HELLO, temperature=0, max_tokens=3, seed=5)
            assert isinstance(got, Answer)
            assert (got.text, got.finish_reason, got.node, got.attempts) == ("hello world", "stop", node.peer_id, 1)
            assert got.usage.completion_tokens == 2
            assert (await client.complete("m", "Once")).text == "hello world"


async def test_what_is_asked_reaches_the_node_with_the_defaults_of_the_http_api(village, service, autojump_clock):
    async with village() as here:
        mine = service()
        await here.node(mine)
        async with here.client() as client:
            await client.chat("m", HELLO, max_tokens=3, seed=5, stop=["x"])
            await client.complete("m", "Once", temperature=0.5)
    chat, completion = mine.asked
    assert (chat.task, chat.messages, chat.max_tokens, chat.seed, chat.stop) == ("chat", HELLO, 3, 5, ["x"])
    assert (chat.temperature, chat.top_p, chat.top_k) == (0.7, 0.9, 50)
    assert (completion.task, completion.prompt, completion.max_tokens, completion.temperature) == ("completion", "Once", 16, 0.5)
    assert chat.request_id != completion.request_id


async def test_the_client_waits_for_the_first_node(village, autojump_clock):
    async with village() as here, here.client() as client, trio.open_nursery() as nursery:

        async def late() -> None:
            await trio.sleep(5)
            await here.node()

        nursery.start_soon(late)
        assert (await client.chat("m", HELLO)).text == "hello world"


async def test_nobody_found_says_why(village, autojump_clock):
    async with village() as here:
        nobody = f"/memory/99/p2p/{Identity.generate().peer_id}"
        async with here.client(bootstrap=[nobody], patience=Patience(find=3)) as client:
            started = trio.current_time()
            with pytest.raises(
                Unavailable, match=r"no node of mesh 'test' was found within 3 s.*/memory/99.*Nothing listens"
            ) as caught:
                await client.models()
            assert trio.current_time() - started == pytest.approx(3, abs=0.5)
            assert caught.value.code == "no_peers"
            with pytest.raises(Unavailable, match="mDNS is off"):
                await client.chat("m", HELLO)
        async with here.client() as client:
            with pytest.raises(Unavailable, match="Linked with 1 other peer of the mesh, but no node"):
                await client.models()


async def test_an_unknown_model_is_said_sooner_with_the_names_there_are(village, autojump_clock):
    async with village() as here:
        await here.node(model="llama")
        async with here.client() as client:
            await client.models()
            started = trio.current_time()
            with pytest.raises(NotFound, match="llama"):
                await client.chat("lama", HELLO)
            assert trio.current_time() - started <= 2.5


async def test_a_model_that_loads_is_waited_for_and_a_failed_one_not_asked(village, service, autojump_clock):
    async with village() as here:
        node = await here.node(state="loading")
        async with here.client() as client:
            await client.models()
            started = trio.current_time()
            with pytest.raises(Unavailable, match="try again later") as caught:
                await client.chat("m", HELLO)
            assert caught.value.code == "model_unavailable"
            assert trio.current_time() - started == pytest.approx(10, abs=0.5)
            assert node.peer_id in {one.peer_id for one in client.nodes()}


async def test_a_task_that_a_model_cannot_do_is_not_sent_there_and_aliases_are_names(village, service, autojump_clock):
    async with village() as here:
        mine = service()
        await here.node(mine, tasks=("chat",), aliases=("short",))
        async with here.client(patience=Patience(find=1)) as client:
            assert (await client.chat("short", HELLO)).text == "hello world"
            with pytest.raises(Unavailable, match="completion request"):
                await client.complete("m", "Once")
    assert len(mine.asked) == 1


async def test_a_busy_or_broken_node_is_left_for_another_before_the_first_token(village, service, autojump_clock):
    async with village() as here:
        bad = [service(error=Busy("full")), service(error=BackendFailed("broke")), service(error=Unavailable("draining"))]
        for one in bad:
            await here.node(one)
        good = await here.node(running=3)
        async with here.client() as client:
            await linked(client, 4)
            got = await client.chat("m", HELLO)
    assert (got.node, got.attempts) == (good.peer_id, 4)
    assert [len(one.asked) for one in bad] == [1, 1, 1]


async def test_attempts_are_bounded_and_full_beats_broken(village, service, autojump_clock):
    async with village() as here:
        services = [service(error=Busy("full")), *(service(error=BackendFailed("broke")) for _ in range(5))]
        for one in services:
            await here.node(one)
        async with here.client(patience=Patience(attempts=6)) as client:
            await linked(client, 6)
            with pytest.raises(Busy, match="full"):
                await client.chat("m", HELLO)
        assert sum(len(one.asked) for one in services) == 6
        async with here.client(patience=Patience(attempts=2)) as client:
            await linked(client, 6)
            with pytest.raises((Busy, BackendFailed)):
                await client.chat("m", HELLO)
    assert sum(len(one.asked) for one in services) == 8


async def test_what_is_wrong_with_the_request_is_not_retried(village, service, autojump_clock):
    async with village() as here:
        services = [service(error=BadRequest("too long", code="context_length_exceeded")) for _ in range(2)]
        for one in services:
            await here.node(one)
        async with here.client() as client:
            await linked(client, 2)
            with pytest.raises(BadRequest, match="too long"):
                await client.chat("m", HELLO)
    assert sum(len(one.asked) for one in services) == 1


async def test_a_loss_after_the_first_token_is_said_and_not_repeated(village, service, autojump_clock):
    async with village() as here:
        services = [service(error=BackendFailed("broke"), before=1) for _ in range(2)]
        for one in services:
            await here.node(one)
        async with here.client() as client, client.stream("m", HELLO) as stream:
            assert await anext(stream) == "hello "
            with pytest.raises(BackendFailed, match="in the middle of the answer") as caught:
                await anext(stream)
    assert caught.value.code == "stream_interrupted"
    assert sum(len(one.asked) for one in services) == 1


async def test_a_node_that_says_nothing_gives_way_and_one_that_stalls_is_named(village, service, autojump_clock):
    async with village() as here:
        await here.node(service(hangs=True))
        good = await here.node(running=4)
        async with here.client(patience=Patience(first_token=5, stall=5)) as client:
            await linked(client, 2)
            got = await client.chat("m", HELLO)
            assert (got.node, got.attempts) == (good.peer_id, 2)
    async with village() as here:
        await here.node(service(hangs=True, before=1))
        async with here.client(patience=Patience(first_token=5, stall=5)) as client:
            with pytest.raises(BackendFailed, match="engine_stalled"):
                await client.chat("m", HELLO)


async def test_nobody_says_a_first_token(village, service, autojump_clock):
    async with village() as here:
        mine = service(hangs=True)
        await here.node(mine)
        async with here.client(patience=Patience(first_token=5)) as client:
            with pytest.raises(TimedOut, match="no first token within 5 s"):
                await client.chat("m", HELLO)
        assert mine.running == 0


# Streams


async def test_a_stream_gives_pieces_and_then_the_answer(village, autojump_clock):
    async with village() as here:
        node = await here.node()
        async with here.client() as client, client.stream("m", HELLO) as stream:
            with pytest.raises(RuntimeError, match="not complete"):
                _ = stream.answer
            pieces = [piece async for piece in stream]
            assert pieces == ["hello ", "world"]
            assert stream.node == node.peer_id
            assert stream.answer.text == "hello world"
            assert [piece async for piece in stream] == []


async def test_leaving_a_stream_cancels_the_work(village, service, autojump_clock):
    async with village() as here:
        mine = service(hangs=True, before=2)
        await here.node(mine)
        async with here.client() as client:
            async with client.stream("m", HELLO) as stream:
                assert await anext(stream) == "hello "
                assert mine.running == 1
            await trio.sleep(0.5)
            assert mine.running == 0
            with pytest.raises(Unavailable, match="closed before its end"):
                await anext(stream)


async def test_a_cancelled_reader_loses_nothing_and_a_cancelled_chat_stops_the_node(village, service, autojump_clock):
    async with village() as here:
        mine = service(hangs=True, before=2)
        await here.node(mine)
        async with here.client() as client:
            async with client.stream("m", HELLO) as stream:
                text = ""
                for _ in range(40):
                    with trio.move_on_after(0.005):
                        text += await anext(stream)
                assert text == "hello world"
            with trio.move_on_after(2) as scope:
                await client.chat("m", HELLO)
            assert scope.cancelled_caught
            await trio.sleep(0.5)
            assert mine.running == 0


async def test_an_error_inside_the_blocks_comes_out_as_it_is(village, autojump_clock):
    async with village() as here:
        await here.node()
        with pytest.raises(KeyError):
            async with here.client() as client, client.stream("m", HELLO):
                raise KeyError("mine")


@pytest.mark.parametrize("bound", ["MAX_UNREAD", "MAX_TEXT"])
async def test_what_is_not_read_and_what_is_too_long_is_bounded(village, service, autojump_clock, monkeypatch, bound):
    monkeypatch.setattr(answer, bound, 100)
    async with village() as here:
        mine = service(words=("x" * 60,) * 50)
        await here.node(mine)
        async with here.client() as client:
            async with client.stream("m", HELLO) as stream:
                if bound == "MAX_UNREAD":
                    await trio.sleep(3)
                with pytest.raises(BadRequest, match="100 characters"):
                    await read(stream)
            await trio.sleep(0.5)
            assert mine.running == 0


# Mistakes


@pytest.mark.parametrize(
    ("messages", "sampling", "param"),
    [
        ([], {}, "messages"),
        ([{"role": "wizard", "content": "x"}], {}, "messages[0].role"),
        (HELLO, {"temperature": 9}, "temperature"),
        (HELLO, {"temprature": 1}, "temprature"),
        (HELLO, {"max_tokens": "many"}, "max_tokens"),
        ([{"role": "user", "content": object()}], {}, None),
    ],
)
async def test_a_wrong_argument_is_named_before_anything_is_sent(village, autojump_clock, messages, sampling, param):
    async with village() as here, here.client() as client:
        with pytest.raises(BadRequest) as caught:
            await client.chat("m", messages, **sampling)
        assert caught.value.param == param


async def test_a_bad_bootstrap_address_and_a_client_outside_its_block(village, autojump_clock):
    with pytest.raises(Misconfigured, match="bootstrap: "):
        async with MeshClient(bootstrap=["somewhere:4001"]):
            pass
    with pytest.raises(RuntimeError, match="enter the client first"):
        MeshClient().nodes()


async def test_a_state_folder_keeps_the_identity_and_is_used_once_at_a_time(village, autojump_clock, tmp_path):
    async with village() as here:
        async with here.client(state_dir=tmp_path) as client:
            first = client.peer.peer_id
            with pytest.raises(Misconfigured, match="in use"):
                async with here.client(state_dir=tmp_path):
                    pass
        async with here.client(state_dir=str(tmp_path)) as client:
            assert client.peer.peer_id == first


async def test_leaving_is_said_and_a_client_around_an_own_peer_works(village, autojump_clock):
    async with village() as here:
        node = await here.node()
        async with MeshClient.around(here.peer("client")) as client:
            await client.models()
            peer_id = client.peer.peer_id
            assert peer_id in node.links
        await trio.sleep(0.5)
        assert peer_id not in node.links
        assert peer_id not in node.registry.peers


async def test_it_is_an_inference_service(village, autojump_clock):
    async with village() as here:
        node = await here.node()
        async with here.client() as client:
            events: list[object] = []
            service = asking.Asking(client.peer, Patience())
            await client.models()
            await service.infer(InferenceRequest(request_id="r", model="m", messages=HELLO), events.append)
            chosen = events[0]
            assert isinstance(chosen, Accepted)
            assert (chosen.node, chosen.attempts) == (node.peer_id, 1)
            assert sum(isinstance(event, Accepted) for event in events) == 1
