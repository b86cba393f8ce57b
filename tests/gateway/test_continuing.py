"""An answer that has begun goes on at another node."""

import msgspec
import pytest
import trio

from gateway import dispatch as dispatch_module
from mesh.errors import BackendFailed, Busy, Unavailable
from mesh.messages.inference import Accepted, Delta, Done, Performance, Usage
from tests.gateway.dispatching import check_one_whole_answer, dispatch_of, events_of, in_order, request


@pytest.mark.parametrize(
    "error", [BackendFailed("boom"), Busy("odd"), Unavailable("gone", code="link_lost")], ids=lambda error: error.code
)
async def test_after_a_loss_in_the_middle_another_node_goes_on(autojump_clock, mesh, failing, error, words):
    one, two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(failing(error, after=2))
    events: list = []
    dispatch = dispatch_of(mesh)
    await dispatch.infer(request(), events.append)
    assert [type(event) for event in events] == [Accepted, *[Delta] * len(words), Done]
    assert [event.text for event in events if isinstance(event, Delta)] == words
    assert (events[0].node, events[0].attempts) == (one.peer_id, 1)
    assert two.requests[0].prior == [[100, 101]]
    assert msgspec.structs.replace(two.requests[0], prior=[]) == one.requests[0]
    assert (events[-1].resumes, events[-1].exact) == (1, False), "what computes alike is not known of these nodes"
    assert (dispatch.totals.succeeded, dispatch.totals.resumed, dispatch.totals.failed) == (1, 1, 0)


async def test_who_computes_alike_goes_on(autojump_clock, mesh, failing, words):
    one, *others = in_order(mesh, *[await mesh.node() for _ in range(4)])
    for node in (one, others[-1]):
        node.numerics = "alike"
        node.announce("ready")
        await mesh.until(lambda node=node: mesh.numerics(node) == "alike")
    one.script.append(failing(BackendFailed("boom"), after=2))
    events: list = []
    await dispatch_of(mesh).infer(request(), events.append)
    assert [len(node.requests) for node in others] == [0, 0, 1]
    assert (events[-1].resumes, events[-1].exact) == (1, True)
    assert [event.text for event in events if isinstance(event, Delta)] == words


async def test_who_wants_no_continuation_gets_an_error(autojump_clock, mesh, failing):
    one, two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(failing(BackendFailed("boom"), after=2))
    events: list = []
    with pytest.raises(BackendFailed) as caught:
        await dispatch_of(mesh).infer(msgspec.structs.replace(request(), resume=False), events.append)
    assert caught.value.code == "stream_interrupted"
    assert [type(event) for event in events] == [Accepted, Delta, Delta]
    assert two.requests == []


async def test_text_without_tokens_cannot_be_continued(autojump_clock, mesh):
    async def words_alone(request, emit):
        emit(Delta(0, [], "a"))
        raise BackendFailed("boom")

    one, two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(words_alone)
    with pytest.raises(BackendFailed) as caught:
        await events_of(dispatch_of(mesh))
    assert caught.value.code == "stream_interrupted"
    assert two.requests == []


@pytest.mark.parametrize(
    "garbage",
    [Delta(3, [1], "x"), Delta(0, [1], "x"), Delta(1, [-1], "x"), Delta(1, [2**40], "x")],
    ids=["gap", "again", "negative", "huge"],
)
async def test_tokens_that_do_not_fit_are_not_passed_on(autojump_clock, mesh, garbage, words):
    async def lie(request, emit):
        emit(Delta(0, [100], "a"))
        emit(garbage)
        await trio.sleep_forever()

    one, two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(lie)
    events = await events_of(dispatch_of(mesh))
    assert [event.text for event in events if isinstance(event, Delta)] == words
    assert two.requests[0].prior == [[100]]
    await one.ended.wait()


async def test_a_choice_that_is_complete_does_not_end_again(autojump_clock, mesh):
    async def first(request, emit):
        emit(Delta(0, [1], "a", choice=0))
        emit(Delta(1, [], "", choice=0, finish_reason="stop"))
        emit(Delta(0, [2], "b", choice=1))
        raise BackendFailed("boom")

    async def second(request, emit):
        emit(Delta(1, [], "", choice=0, finish_reason="stop"))
        emit(Delta(1, [3], "c", choice=1))
        emit(Done("stop", Usage(1, 3), Performance(1.0, 2.0, 0.0, 100.0, 1)))

    one, two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(first)
    two.script.append(second)
    events = await events_of(dispatch_of(mesh), n=2)
    assert two.requests[0].prior == [[1], [2]]
    assert [(event.choice, event.text, event.finish_reason) for event in events if isinstance(event, Delta)] == [
        (0, "a", None),
        (0, "", "stop"),
        (1, "b", None),
        (1, "c", None),
    ]


async def test_a_request_that_kills_every_worker_at_the_same_token_is_given_up(autojump_clock, mesh, failing):
    nodes = [await mesh.node() for _ in range(6)]

    def dies(request, emit):
        return failing(BackendFailed("dead", code="worker_died"), after=2 if not request.prior else 0)(request, emit)

    for node in nodes:
        node.script += [dies] * 9
    with pytest.raises(BackendFailed):
        await events_of(dispatch_of(mesh))
    assert sum(len(node.requests) for node in nodes) == 4


async def test_an_answer_in_one_piece_survives_a_loss_in_its_middle(autojump_clock, mesh, failing):
    one, two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(failing(BackendFailed("dead", code="worker_died"), after=2))
    events: list = []
    await dispatch_of(mesh).infer(request(stream=False), events.append)
    assert isinstance(events[0], Accepted)
    assert (events[0].node, events[0].attempts) == (one.peer_id, 1)
    assert two.requests[0].prior == [[100, 101]]
    assert isinstance(events[-1], Done)
    offsets = [event.offset for event in events if isinstance(event, Delta)]
    assert offsets == sorted(set(offsets)), "no token comes twice"


async def test_a_stream_that_stalls_goes_on_elsewhere(autojump_clock, mesh):
    async def stall(request, emit):
        for offset in range(100):
            emit(Delta(offset, [offset], "x"))
            await trio.sleep(20)
        await trio.sleep_forever()

    async def end(request, emit):
        emit(Done("stop", Usage(1, len(request.prior[0])), Performance(1.0, 2.0, 0.0, 100.0, 1)))

    one, two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(stall)
    two.script.append(end)
    events: list = []
    started = trio.current_time()
    await dispatch_of(mesh, stall=60.0, total=100_000.0).infer(request(), events.append)
    # Tokens that keep coming are no stall, however long the whole takes.
    assert len(events) == 102
    assert trio.current_time() - started < 100 * 20 + 100
    await one.ended.wait()
    assert one.cancelled == ["r1"]


async def test_going_on_is_not_paid_for(autojump_clock, mesh, failing, words, monkeypatch):
    monkeypatch.setattr(dispatch_module, "RETRY_BURST", 0.0)
    monkeypatch.setattr(dispatch_module, "RETRY_SHARE", 0.0)
    one, _two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(failing(BackendFailed("boom"), after=2))
    dispatch = dispatch_of(mesh)
    check_one_whole_answer(await events_of(dispatch), words)
    assert (dispatch.totals.resumed, dispatch.retries.refused) == (1, 0)
