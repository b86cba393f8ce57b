"""Text without tokens that goes on at another node, where a service can do that."""

import msgspec
import pytest
import trio

from mesh.errors import BackendFailed, MeshError, Unavailable
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Said, Usage
from tests.gateway.dispatching import check_one_whole_answer, dispatch_of, events_of, in_order, request

DONE = Done("stop", Usage(3, 4), Performance(1.0, 2.0, 0.0, 100.0, 1))


def speaker(*texts: str, error: MeshError | None = None):
    """A service that knows no tokens: these texts, or those of them that were not said, then the error or the end."""

    async def speak(request, emit):
        emit(Accepted(kept=bool(request.keep)))
        begun = request.said.pieces if request.said is not None else 0
        for number, text in enumerate(texts[begun:], begun):
            await trio.lowlevel.checkpoint()
            emit(Delta(number, [], text))
        if error is not None:
            await trio.sleep(0.01)
            raise error
        emit(DONE)

    return speak


BOOM = BackendFailed("boom", code="service_lost")


async def speakers(mesh, *, continue_too: bool = True) -> tuple:
    return in_order(mesh, await mesh.node(continues=True), await mesh.node(continues=continue_too))


async def test_text_goes_on_where_a_service_can_do_that_and_says_that_it_is_not_exact(autojump_clock, mesh):
    one, two = await speakers(mesh)
    one.script.append(speaker("a", "b", error=BOOM))
    two.script.append(speaker("a", "b", "c", "d"))
    dispatch = dispatch_of(mesh)
    events = await events_of(dispatch)
    check_one_whole_answer(events, ["a", "b", "c", "d"])
    assert (events[-1].resumes, events[-1].exact) == (1, False)
    assert (two.requests[0].said, two.requests[0].prior) == (Said("ab", 2), [])
    assert (dispatch.totals.succeeded, dispatch.totals.resumed) == (1, 1)


async def test_text_goes_on_behind_all_of_it_when_another_service_is_lost_as_well(autojump_clock, mesh):
    asked: list[InferenceRequest] = []
    lost = Unavailable("gone", code="link_lost")
    steps = [speaker("a", error=BOOM), speaker("a", "b", "c", error=lost), speaker("a", "b", "c", "d")]

    async def next_step(request, emit):
        asked.append(request)
        await steps.pop(0)(request, emit)

    for _ in range(3):
        await mesh.node(next_step, continues=True)
    events = await events_of(dispatch_of(mesh))
    check_one_whole_answer(events, ["a", "b", "c", "d"])
    assert [request.said for request in asked] == [None, Said("a", 1), Said("abc", 3)]
    assert events[-1].resumes == 2


async def test_a_service_that_cannot_go_on_behind_a_text_is_not_asked_to(autojump_clock, mesh):
    one, two, three = in_order(mesh, *[await mesh.node() for _ in range(3)])
    for node in (one, three):
        node.continues = True
        node.announce()
        await mesh.until(lambda node=node: mesh.entry(node).capabilities.continues)
    one.script.append(speaker("a", error=BOOM))
    three.script.append(speaker("a", "b"))
    events = await events_of(dispatch_of(mesh))
    check_one_whole_answer(events, ["a", "b"])
    assert (two.requests, three.requests[0].said) == ([], Said("a", 1))


@pytest.mark.parametrize(
    "more", [{"resume": False}, {"n": 2}, {"prompt": [1, 2]}], ids=["not wanted", "two answers", "a prompt of tokens"]
)
async def test_text_is_not_continued_where_that_is_not_wanted_or_not_possible(autojump_clock, mesh, more):
    one, two = await speakers(mesh)
    one.script.append(speaker("a", error=BOOM))
    with pytest.raises(BackendFailed) as caught:
        await dispatch_of(mesh).infer(msgspec.structs.replace(request(), **more), lambda _: None)
    assert caught.value.code == "stream_interrupted"
    assert two.requests == []


async def test_where_nobody_can_go_on_behind_the_text_the_stream_is_interrupted(autojump_clock, mesh):
    node = await mesh.node(speaker("a", error=BOOM), continues=True)
    events: list = []
    with pytest.raises(BackendFailed) as caught:
        await dispatch_of(mesh).infer(request(), events.append)
    assert caught.value.code == "stream_interrupted"
    assert [type(event) for event in events] == [Accepted, Delta]
    assert len(node.requests) == 1


async def test_a_server_that_refuses_to_go_on_interrupts_the_stream(autojump_clock, mesh):
    one, two = await speakers(mesh)
    one.script.append(speaker("a", error=BOOM))
    two.script.append(speaker(error=Unavailable("it does not", code="cannot_go_on")))
    with pytest.raises(BackendFailed) as caught:
        await events_of(dispatch_of(mesh, resume_wait=0.1))
    assert caught.value.code == "stream_interrupted"


async def test_an_answer_in_one_piece_starts_over_instead(autojump_clock, mesh):
    one, two = await speakers(mesh)
    one.script.append(speaker("a", error=BOOM))
    two.script.append(speaker("x", "y"))
    events = await events_of(dispatch_of(mesh), stream=False)
    check_one_whole_answer(events, ["x", "y"])
    assert (two.requests[0].said, events[-1].exact) == (None, True)
