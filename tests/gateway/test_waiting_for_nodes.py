"""A request waits for a node that can take it, so long and no longer."""

import pytest
import trio

from mesh.errors import BackendFailed, Busy, Unavailable
from tests.gateway.dispatching import check_one_whole_answer, dispatch_of, events_of


async def test_all_nodes_busy_is_busy_and_not_a_failure(autojump_clock, mesh, failing):
    nodes = [await mesh.node(failing(Busy("full", retry_after=7.0))) for _ in range(3)]
    dispatch = dispatch_of(mesh)
    started = trio.current_time()
    with pytest.raises(Busy) as caught:
        await events_of(dispatch)
    assert caught.value.retry_after == 7.0
    assert trio.current_time() - started < 2.0
    assert [len(node.requests) for node in nodes] == [1, 1, 1]
    assert all(dispatch.router.observations.of(node.peer_id, "m").failed == 0 for node in nodes)


async def test_while_one_node_is_ready_busy_and_leaving_ones_never_fail_a_request(autojump_clock, mesh, failing, words):
    nodes = [await mesh.node(failing(Unavailable("leaving", code="leaving"))) for _ in range(7)]
    nodes.append(await mesh.node())
    nodes.sort(key=lambda node: node.peer_id)
    nodes[-1].script.clear()
    check_one_whole_answer(await events_of(dispatch_of(mesh, max_failures=2)), words)


async def test_a_model_that_loads_is_waited_for(autojump_clock, mesh, words):
    node = await mesh.node(state="loading")
    dispatch = dispatch_of(mesh, queue_wait=2.0)
    events: list = []

    async def ask():
        events.extend(await events_of(dispatch))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(1.0)
        assert events == []
        node.announce("ready")
    check_one_whole_answer(events, words)


async def test_the_only_node_is_tried_again_once_its_worker_is_back(autojump_clock, mesh, failing, words):
    node = await mesh.node(failing(BackendFailed("the worker died", code="worker_died")))
    events: list = []

    async def ask():
        events.extend(await events_of(dispatch_of(mesh, queue_wait=2.0)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.sleep(0.5)
        node.announce("loading")
        await trio.sleep(0.5)
        node.announce("ready")
    check_one_whole_answer(events, words)
    assert (len(node.requests), events[0].attempts) == (2, 2)


async def test_waiting_for_a_node_has_a_bound_and_says_when_to_come_back(autojump_clock, mesh):
    await mesh.node(state="failed")
    started = trio.current_time()
    with pytest.raises(Unavailable) as caught:
        await events_of(dispatch_of(mesh, queue_wait=2.0))
    assert caught.value.status == 503
    assert caught.value.retry_after
    assert 1.9 < trio.current_time() - started < 4


async def test_a_node_that_comes_and_goes_does_not_hold_a_request_for_ever(autojump_clock, mesh):
    loading = Unavailable("loading", code="model_loading")

    async def refuse(request, emit):
        raise loading

    node = await mesh.node(*[refuse] * 1000)
    started = trio.current_time()

    async def flap():
        while True:
            await trio.sleep(0.1)
            node.announce("loading")
            await trio.sleep(0.1)
            node.announce("ready")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(flap)
        with pytest.raises(Unavailable):
            await events_of(dispatch_of(mesh, queue_wait=2.0))
        nursery.cancel_scope.cancel()
    assert trio.current_time() - started < 10
