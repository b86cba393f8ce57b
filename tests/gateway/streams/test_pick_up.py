"""Clients that lost their gateway, or their connection, go on at another one."""

from __future__ import annotations

import secrets

import msgspec
import pytest
import trio

from gateway.streams import pick_up
from gateway.streams.token import ResumeToken
from mesh.errors import Busy
from node.backends.mock import MockSettings

SEEDED = {"seed": 3, "max_tokens": 40}
FAST = MockSettings(length=40)


async def test_every_chunk_says_where_to_go_on(town, client):
    node = await town.node(FAST)
    way = await town.gateway(node)
    whole = await client.start(way)
    assert whole.done
    token = whole.marker.partition(":")[0]
    assert ResumeToken.parse(token).names(node.peer_id)
    assert whole.ids == [f"{token}:0"] + [f"{token}:{number}" for number in range(1, 41)] + [f"{token}:40"]
    assert len(whole.ids) == len(whole.chunks)


async def test_an_sse_client_goes_on_at_another_gateway_and_nothing_is_made_twice(town, client, until):
    node = await town.node()
    first, second = await town.gateway(node), await town.gateway(node)
    whole = await client.start(first)
    node.generated = 0

    begun = await client.start(first, chunks=6, then=first.kill, stream_options={"include_usage": True})
    rest = await client.resume(second, begun.marker)
    assert rest.status == 200
    assert begun.text + rest.text == whole.text
    assert rest.done
    assert rest.chunks[-1]["usage"]["completion_tokens"] == 40
    assert rest.chunks[0]["id"] == begun.chunks[0]["id"]
    assert rest.chunks[0]["created"] == begun.chunks[0]["created"]
    assert all("role" not in choice["delta"] for chunk in rest.chunks for choice in chunk["choices"])
    assert rest.ids[-1].endswith(":40")
    assert second.gateway.dispatch.totals.picked_up == 1
    assert node.generated == 40


async def test_what_was_complete_before_its_client_came_back(town, client, until):
    node = await town.node()
    first, second = await town.gateway(node), await town.gateway(node)
    whole = await client.start(first)
    node.generated = 0
    for position in (0, 1, 17, 39, 40):
        rest = await client.resume(second, f"{whole.marker.partition(':')[0]}:{position}")
        assert rest.done
        assert whole.text.endswith(rest.text)
        assert len(rest.text.split()) == 40 - position
        assert ("role" in rest.chunks[0]["choices"][0]["delta"]) == (position == 0)
    assert node.generated == 0


async def test_a_websocket_client_goes_on_at_another_gateway(town, client, until):
    node = await town.node()
    first, second = await town.gateway(node), await town.gateway(node)
    async with first.socket() as socket:
        await socket.say(
            type="inference", request_id="mine", model="m", inputs="hi", stream=True, parameters={"seed": 3, "max_tokens": 40}
        )
        started = await socket.next()
        begun = await socket.chunks(5)
        first.kill()
    async with second.socket() as socket:
        await socket.say(type="resume", resume_token=started["resume_token"], index=begun[-1]["index"] + begun[-1]["tokens"])
        *rest, complete = await socket.chunks()
    assert [chunk["index"] for chunk in begun + rest] == list(range(40))
    assert {chunk["request_id"] for chunk in [*rest, complete]} == {"mine"}
    assert complete["usage"]["completion_tokens"] == 40
    assert node.generated == 40


async def test_the_work_has_moved_and_the_token_still_finds_it(town, client, until):
    """The token names the first node; that one died, another one went on, and then the gateway died as well."""
    nodes = [await town.node() for _ in range(2)]
    first, second = await town.gateway(*nodes), await town.gateway(*nodes)
    async with first.socket() as socket:
        await socket.say(
            type="inference", request_id="mine", model="m", inputs="hi", stream=True, parameters={"seed": 3, "max_tokens": 40}
        )
        started = await socket.next()
        begun = await socket.chunks(3)
        town.network.kill(started["node"])
        begun += await socket.chunks(6)
        first.kill()
    async with second.socket() as socket:
        await socket.say(type="resume", resume_token=started["resume_token"], index=len(begun))
        *rest, _ = await socket.chunks()
    assert [chunk["index"] for chunk in begun + rest] == list(range(40))


async def test_a_client_that_left_comes_back_and_the_rest_is_made_then(town, client, until):
    node = await town.node()
    way = await town.gateway(node)
    whole = await client.start(way)
    node.generated = 0
    begun = await client.start(way, chunks=6)
    await until(lambda: node.backend.load.running == 0)
    assert node.generated < 40, "who hangs up ends the work"
    rest = await client.resume(way, begun.marker)
    assert rest.done
    assert begun.text + rest.text == whole.text
    assert node.generated == 40


async def test_several_choices_go_on_and_each_ends_once(town, client, until):
    node = await town.node()
    first, second = await town.gateway(node), await town.gateway(node)
    whole = await client.start(first, n=3, max_tokens=20)
    begun = await client.start(first, n=3, max_tokens=20, chunks=14, then=first.kill)
    rest = await client.resume(second, begun.marker)
    assert rest.done
    assert {index: begun.texts.get(index, "") + rest.texts.get(index, "") for index in range(3)} == whole.texts
    ends = [choice["index"] for chunk in begun.chunks + rest.chunks for choice in chunk["choices"] if choice["finish_reason"]]
    assert sorted(ends) == [0, 1, 2]


async def test_the_node_dies_after_its_stream_was_picked_up(town, client, until):
    nodes = [await town.node() for _ in range(2)]
    first, second = await town.gateway(*nodes), await town.gateway(*nodes)
    whole = await client.start(first)
    begun = await client.start(first, chunks=4, then=first.kill)
    async with trio.open_nursery() as nursery:
        resumed: list = []

        async def resume() -> None:
            resumed.append(await client.resume(second, begun.marker))

        nursery.start_soon(resume)
        await until(lambda: second.gateway.dispatch.totals.picked_up)
        await trio.sleep(0.05)
        victim = next(node for node in nodes if node.keeper)
        town.network.kill(victim.peer_id)
    assert resumed[0].done
    assert begun.text + resumed[0].text == whole.text


async def test_a_lost_link_to_the_only_node_costs_nothing_that_was_made(town, client, until):
    node = await town.node()
    way = await town.gateway(node)
    whole = await client.start(way)
    node.generated = 0
    async with trio.open_nursery() as nursery:
        got: list = []

        async def begin() -> None:
            got.append(await client.start(way))

        nursery.start_soon(begin)
        await until(lambda: node.generated > 5)
        for link in node.peer.every_link:
            link._abort()
    assert got[0].done
    assert got[0].text == whole.text
    assert node.generated == 40


@pytest.mark.parametrize("what", ["secret", "tenant", "position", "garbage"])
async def test_somebody_elses_stream_is_not_there(town, client, until, what, monkeypatch):
    node = await town.node()
    way = await town.gateway(node)
    monkeypatch.setattr(pick_up, "NAMED", 0.1)
    async with trio.open_nursery() as nursery:
        got: list = []

        async def begin() -> None:
            got.append(await client.start(way))

        nursery.start_soon(begin)
        await until(lambda: node.generated > 5)
        secret = next(iter(node.keeper._streams))
        mine = f"{ResumeToken.of(node.peer_id, secret)}:2"
        if what == "tenant":
            stream = node.keeper._streams[secret]
            monkeypatch.setattr(stream, "request", msgspec.structs.replace(stream.request, tenant="another"))
        marker = {
            "secret": f"{ResumeToken.of(node.peer_id, secrets.token_bytes(16))}:2",
            "tenant": mine,
            "position": mine.replace(":2", ":2000"),
            "garbage": "nonsense",
        }[what]
        answer = await client.resume(way, marker)
        assert answer.status == 404
        assert "stream_not_found" in answer.text
        async with way.socket() as socket:
            token, _, index = marker.partition(":")
            await socket.say(type="resume", resume_token=token, index=int(index or 0))
            refused = await socket.next()
        assert (refused["type"], refused["code"]) == ("error", "stream_not_found")
        assert way.gateway.dispatch.totals.not_found == (0 if what == "garbage" else 2)
        if what == "tenant":
            monkeypatch.undo()
    assert got[0].done
    assert len(got[0].text.split()) == 40, "the one whose it is sees nothing of all that"


async def test_without_an_event_id_the_client_is_told_what_to_send(town, client):
    way = await town.gateway()
    answer = await client._http.get(f"{way.url}/v1/streams")
    assert answer.status_code == 400
    assert "Last-Event-ID" in answer.json()["error"]["message"]


async def test_looks_are_bounded(town, monkeypatch):
    way = await town.gateway()
    monkeypatch.setattr(pick_up, "MAX_LOOKS", 0)
    with pytest.raises(Busy):
        await way.gateway.streams.find(ResumeToken.of("x", bytes(16)), 0, tenant="anonymous")


async def test_who_wants_no_resuming_gets_no_token_and_nothing_is_kept(town, client):
    node = await town.node(FAST)
    way = await town.gateway(node)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    answer = await client._http.post(f"{way.url}/v1/chat/completions", json=body, headers={"x-infermesh-resume": "off"})
    assert "id: " not in answer.text
    assert len(node.keeper) == 0
