import pytest
import trio

from mesh.errors import BackendFailed, Conflict, NotFound, TimedOut, Unavailable
from mesh.messages.inference import Accepted, Delta
from tests.gateway.dispatching import check_one_whole_answer, dispatch_of, events_of, in_order


async def test_an_answer_arrives_once_and_names_its_node(autojump_clock, mesh, words):
    node = await mesh.node()
    dispatch = dispatch_of(mesh)
    events = await events_of(dispatch)
    check_one_whole_answer(events, words)
    assert (events[0].node, events[0].attempts) == (node.peer_id, 1)
    assert (dispatch.totals.requests, dispatch.totals.succeeded, dispatch.totals.in_flight) == (1, 1, 0)


async def test_an_unknown_model_is_not_found_with_near_names(autojump_clock, mesh):
    await mesh.node(models=("llama-3-8b", "qwen"))
    with pytest.raises(NotFound, match="llama-3-8b") as caught:
        await events_of(dispatch_of(mesh), model="llama3-8b")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


async def test_a_model_whose_node_is_gone_is_unavailable_by_id_and_alias(autojump_clock, mesh):
    node = await mesh.node(models=("m",), aliases=("alias",))
    dispatch = dispatch_of(mesh)
    node.kill()
    await mesh.until(lambda: not mesh.gateway.registry.nodes())
    for name in ("m", "alias"):
        with pytest.raises(Unavailable):
            await events_of(dispatch, model=name)


async def test_an_alias_reaches_its_model_and_two_targets_are_a_conflict(autojump_clock, mesh, words):
    node = await mesh.node(models=("one",), aliases=("big",))
    dispatch = dispatch_of(mesh)
    check_one_whole_answer(await events_of(dispatch, model="big"), words)
    assert node.requests[0].model == "one"
    await mesh.node(models=("two",), aliases=("big",))
    with pytest.raises(Conflict, match="one and two"):
        await events_of(dispatch, model="big")
    await mesh.node(models=("big",))
    check_one_whole_answer(await events_of(dispatch, model="big"), words)


async def test_cancelling_reaches_the_node(autojump_clock, mesh):
    async def endless(request, emit):
        emit(Accepted())
        offset = 0
        while True:
            emit(Delta(offset, [1], "x"))
            offset += 1
            await trio.sleep(0.1)

    node = await mesh.node(endless)
    dispatch = dispatch_of(mesh)
    with trio.move_on_after(5) as scope:
        await events_of(dispatch)
    assert scope.cancelled_caught
    await node.ended.wait()
    assert node.cancelled == ["r1"]
    assert (dispatch.totals.cancelled, dispatch.totals.in_flight) == (1, 0)
    assert dispatch.router.observations.of(node.peer_id, "m").in_flight == 0


async def test_the_total_limit_ends_a_request_and_the_node_is_told_what_is_left(autojump_clock, mesh):
    async def slow(request, emit):
        await trio.sleep_forever()

    node = await mesh.node(slow)
    with pytest.raises(TimedOut) as caught:
        await events_of(dispatch_of(mesh), deadline_ms=3000)
    assert caught.value.code == "request_timeout"
    assert 0 < node.requests[0].deadline_ms <= 3000


async def test_two_models_take_turns_independently(autojump_clock, mesh):
    one, two = await mesh.node(models=("x", "y")), await mesh.node(models=("x", "y"))
    dispatch = dispatch_of(mesh)
    for _ in range(4):
        await events_of(dispatch, model="x")
        await events_of(dispatch, model="y")
    for node in (one, two):
        assert [request.model for request in node.requests].count("x") == 2
        assert [request.model for request in node.requests].count("y") == 2


async def test_asking_where_a_request_would_go_takes_no_turn(autojump_clock, mesh):
    nodes = in_order(mesh, await mesh.node(), await mesh.node())
    dispatch = dispatch_of(mesh)
    for _ in range(3):
        assert dispatch.router.rank("m")[0].candidate.peer_id == nodes[0].peer_id
    await events_of(dispatch)
    assert dispatch.router.rank("m")[0].candidate.peer_id == nodes[1].peer_id


async def test_default_policy_tries_every_node_and_avoids_the_one_that_fails(autojump_clock, mesh, failing):
    broken = await mesh.node(*[failing(BackendFailed("boom"))] * 100)
    good = [await mesh.node(), await mesh.node()]
    dispatch = dispatch_of(mesh, "predicted_latency")
    for _ in range(30):
        await events_of(dispatch)
    assert all(node.requests for node in good)
    assert 1 <= len(broken.requests) <= 5


async def test_no_node_is_told_where_a_request_came_from(autojump_clock, mesh, words):
    node = await mesh.node()
    check_one_whole_answer(await events_of(dispatch_of(mesh, "prefix_affinity"), client="10.0.0.1"), words)
    assert node.requests[0].client == ""


async def test_the_course_of_a_request_is_seen_from_outside(autojump_clock, mesh, failing, nursery):
    one, _two = in_order(mesh, await mesh.node(), await mesh.node())

    async def slow(request, emit):
        await trio.sleep(1)
        emit(Accepted(running=1))
        await trio.sleep(1)
        emit(Delta(0, [100], "a"))
        await trio.sleep(1)
        raise BackendFailed("boom")

    one.script.append(slow)
    dispatch = dispatch_of(mesh)
    nursery.start_soon(events_of, dispatch)
    states = []
    for _ in range(4):
        await trio.sleep(0.99)
        states += [delivery.course.state for delivery in dispatch.under_way]
    assert states == ["connecting", "first_token", "streaming"]
