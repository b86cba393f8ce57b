import pytest
import trio

from gateway.absence import absence, is_loading
from gateway.dispatch import Dispatch, DispatchLimits
from gateway.routing.router import Router
from mesh.errors import BackendFailed, Unavailable
from mesh.messages.inference import Done, InferenceRequest
from mesh.messages.record import ModelEntry


def request(**more) -> InferenceRequest:
    return InferenceRequest(**{"request_id": "r1", "model": "m", "prompt": "hello", "task": "completion", **more})


def dispatch_of(mesh, **limits) -> Dispatch:
    return Dispatch(Router(mesh.gateway.registry), limits=DispatchLimits(**limits))


async def refusal(dispatch: Dispatch) -> Unavailable:
    with pytest.raises(Unavailable) as caught:
        await dispatch.infer(request(), lambda event: None)
    return caught.value


async def test_a_model_that_loads_is_waited_for_and_then_answers(autojump_clock, mesh, nursery):
    node = await mesh.node(state="loading")
    dispatch = dispatch_of(mesh, queue_wait=1.0, loading_wait=30.0)
    events: list = []
    nursery.start_soon(dispatch.infer, request(), events.append)
    await trio.sleep(20)
    assert events == []
    node.announce()
    await mesh.until(lambda: bool(events) and isinstance(events[-1], Done))


async def test_one_that_does_not_get_ready_in_time_is_a_503_that_says_how_far_it_is(autojump_clock, mesh):
    node = await mesh.node(state="loading")
    node.models = [ModelEntry(id="m", state="loading", wake_seconds=12.0)]
    node.peer.announce(node.models, {})
    await mesh.until(lambda: mesh.gateway.registry.peers[node.peer_id].record.models[0].wake_seconds == 12.0)
    started = trio.current_time()
    error = await refusal(dispatch_of(mesh, queue_wait=1.0, loading_wait=5.0))
    assert trio.current_time() - started == pytest.approx(5.0, abs=0.2)
    assert (error.status, error.code, error.retry_after) == (503, "model_loading", 12.0)
    assert error.message == "'m' is loading on node-1, which usually takes 12 s; try again in 12 s"


async def test_who_does_not_want_to_wait_says_so(autojump_clock, mesh):
    await mesh.node(state="loading")
    started = trio.current_time()
    error = await refusal(dispatch_of(mesh, queue_wait=0.0, loading_wait=0.0))
    assert trio.current_time() == started
    assert error.code == "model_loading"


async def test_one_that_failed_is_not_waited_for_as_if_it_loaded(autojump_clock, mesh):
    node = await mesh.node(state="failed")
    started = trio.current_time()
    error = await refusal(dispatch_of(mesh, queue_wait=1.0, loading_wait=30.0))
    assert trio.current_time() - started == pytest.approx(1.0, abs=0.2)
    assert error.code == "model_unavailable"
    assert "its nodes: 1 failed" in error.message
    assert not is_loading([mesh.gateway.registry.peers[node.peer_id]], "m")


async def test_a_node_whose_worker_died_is_waited_for_while_it_loads_again(autojump_clock, mesh, nursery, words):
    node = await mesh.node()

    async def dies(request, emit):
        node.announce("loading")
        await trio.sleep(0.05)
        raise BackendFailed("the worker died", code="worker_died")

    node.script.append(dies)
    events: list = []
    nursery.start_soon(dispatch_of(mesh, queue_wait=1.0, loading_wait=30.0).infer, request(), events.append)
    await trio.sleep(10)
    node.announce()
    await mesh.until(lambda: bool(events) and isinstance(events[-1], Done))
    assert len(node.requests) == 2


async def test_many_that_load_are_not_all_named(autojump_clock, mesh):
    nodes = [await mesh.node(state="loading") for _ in range(5)]
    error = absence("m", [mesh.gateway.registry.peers[node.peer_id] for node in nodes])
    assert "node-1, node-2, node-3 and 2 more" in error.message
    assert absence("m", []).message == "no node can serve 'm' right now; try again in 2 s"
