"""Before the first token a request goes from node to node, within bounds."""

import pytest
import trio

from gateway import dispatch as dispatch_module
from mesh.errors import BackendFailed, BadRequest, Busy, Conflict, MeshError, NotFound, TimedOut, Unavailable
from mesh.messages.inference import Accepted
from tests.gateway.dispatching import check_one_whole_answer, dispatch_of, events_of, in_order

RETRIED = [
    BackendFailed("the worker died", code="worker_died"),
    Busy("full"),
    Unavailable("shutting down", code="draining"),
    Unavailable("leaving", code="leaving"),
    Unavailable("loading", code="model_loading"),
    TimedOut("too slow"),
    NotFound("not here any more", code="model_not_found"),
    Conflict("the first try still runs", code="request_in_progress"),
]


@pytest.mark.parametrize("error", RETRIED, ids=lambda error: error.code)
async def test_a_failure_before_the_first_token_goes_to_the_next_node(autojump_clock, mesh, failing, words, error):
    one, two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(failing(error))
    dispatch = dispatch_of(mesh)
    events = await events_of(dispatch)
    check_one_whole_answer(events, words)
    assert (events[0].node, events[0].attempts) == (two.peer_id, 2)
    assert len(one.requests) == 1
    assert dispatch.totals.requests == dispatch.totals.retried == dispatch.totals.succeeded == 1
    seen = dispatch.router.observations.of(one.peer_id, "m")
    assert (seen.requests, seen.in_flight) == (1, 0)


async def test_a_lost_link_before_the_first_token_goes_to_the_next_node(autojump_clock, mesh, words):
    one, two = in_order(mesh, await mesh.node(), await mesh.node())

    async def die(request, emit):
        emit(Accepted())
        one.kill()
        await trio.sleep_forever()

    one.script.append(die)
    events = await events_of(dispatch_of(mesh))
    check_one_whole_answer(events, words)
    assert events[0].node == two.peer_id


async def test_a_silent_node_is_given_up_and_the_next_one_answers(autojump_clock, mesh, words):
    one, two = in_order(mesh, await mesh.node(), await mesh.node())

    async def hang(request, emit):
        emit(Accepted())
        await trio.sleep_forever()

    one.script.append(hang)
    events = await events_of(dispatch_of(mesh, first_token=30.0))
    check_one_whole_answer(events, words)
    assert events[0].node == two.peer_id
    await one.ended.wait()
    assert one.cancelled == ["r1"]


async def test_no_first_token_anywhere_is_a_timeout(autojump_clock, mesh):
    async def hang(request, emit):
        await trio.sleep_forever()

    nodes = [await mesh.node(hang), await mesh.node(hang)]
    started = trio.current_time()
    with pytest.raises(TimedOut) as caught:
        await events_of(dispatch_of(mesh, first_token=30.0))
    assert (caught.value.code, caught.value.status) == ("engine_timeout", 504)
    assert trio.current_time() - started < 70
    assert [len(node.requests) for node in nodes] == [1, 1]


@pytest.mark.parametrize(
    "error", [BadRequest("too long", code="context_length_exceeded"), MeshError("a bug")], ids=lambda error: error.code
)
async def test_what_is_wrong_with_the_request_is_not_retried(autojump_clock, mesh, failing, error):
    one, two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(failing(error))
    with pytest.raises(type(error), match=error.message):
        await events_of(dispatch_of(mesh))
    assert two.requests == []


async def test_a_node_that_stops_without_an_end_is_a_failure(autojump_clock, mesh, words):
    one, two = in_order(mesh, await mesh.node(), await mesh.node())

    async def nothing(request, emit):
        emit(Accepted())

    one.script.append(nothing)
    check_one_whole_answer(await events_of(dispatch_of(mesh)), words)
    assert len(two.requests) == 1


async def test_a_request_that_kills_workers_stops_at_the_bound(autojump_clock, mesh, failing):
    died = BackendFailed("the worker died", code="worker_died")
    nodes = [await mesh.node(failing(died)) for _ in range(6)]
    with pytest.raises(BackendFailed, match="worker died"):
        await events_of(dispatch_of(mesh, max_failures=4))
    assert sum(len(node.requests) for node in nodes) == 4


async def test_starting_over_has_a_budget(autojump_clock, mesh, failing, monkeypatch):
    monkeypatch.setattr(dispatch_module, "RETRY_BURST", 3.0)
    monkeypatch.setattr(dispatch_module, "RETRIES_PER_SECOND", 0.0)
    nodes = [await mesh.node(*[failing(BackendFailed("boom"))] * 400) for _ in range(4)]
    dispatch = dispatch_of(mesh)
    for _ in range(100):
        with pytest.raises(BackendFailed, match="boom"):
            await events_of(dispatch)
    # Without it there would be 400: each request on each node.
    assert sum(len(node.requests) for node in nodes) <= 100 + 100 * 0.2 + 3
    assert dispatch.retries.refused >= 70
    assert dispatch.busy_retries.refused == 0


async def test_full_nodes_are_not_all_asked_by_every_request_for_ever(autojump_clock, mesh, failing, monkeypatch):
    monkeypatch.setattr(dispatch_module, "RETRY_BURST", 3.0)
    monkeypatch.setattr(dispatch_module, "RETRIES_PER_SECOND", 0.0)
    nodes = [await mesh.node(*[failing(Busy("full"))] * 400) for _ in range(4)]
    dispatch = dispatch_of(mesh)
    for _ in range(100):
        with pytest.raises(Busy, match="full") as caught:
            await events_of(dispatch)
        assert caught.value.retry_after
    assert 100 < sum(len(node.requests) for node in nodes) <= 100 + 100 + 3
    assert all(dispatch.router.observations.of(node.peer_id, "m").failed == 0 for node in nodes)


async def test_a_node_that_failed_is_tried_by_one_request_at_a_time_until_it_answers(autojump_clock, mesh, failing):
    one, two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script += [failing(BackendFailed("boom"))] * 2
    dispatch = dispatch_of(mesh)
    seen = dispatch.router.observations.of(one.peer_id, "m")
    await events_of(dispatch)
    assert seen.breaker(trio.current_time()) == "open"
    for _ in range(4):
        await events_of(dispatch)
    assert len(one.requests) == 1
    await trio.sleep(seen.suspect_until - trio.current_time())
    assert seen.breaker(trio.current_time()) == "half_open"
    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(events_of, dispatch)
    assert len(one.requests) == 2
    assert seen.breaker(trio.current_time()) == "open"
    await trio.sleep(seen.suspect_until - trio.current_time())
    for _ in range(2):
        await events_of(dispatch)
    assert seen.breaker(trio.current_time()) == "closed"
    assert len(two.requests) > len(one.requests)
