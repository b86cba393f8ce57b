import msgspec
import pytest
import trio

from gateway import dispatch as dispatch_module
from gateway.dispatch import Dispatch, DispatchLimits
from gateway.routing.router import Router
from mesh.errors import BackendFailed, BadRequest, Busy, Conflict, MeshError, NotFound, TimedOut, Unavailable
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Said, Usage

DONE = Done("stop", Usage(3, 4), Performance(1.0, 2.0, 0.0, 100.0, 1))


def request(model: str = "m", **more) -> InferenceRequest:
    return InferenceRequest(request_id="r1", model=model, prompt="hello", task="completion", **more)


def dispatch_of(mesh, strategy: str = "round_robin", **limits) -> Dispatch:
    return Dispatch(Router(mesh.gateway.registry, strategy=strategy), limits=DispatchLimits(**limits))


async def events_of(dispatch: Dispatch, **more) -> list:
    events: list = []
    await dispatch.infer(request(**more), events.append)
    return events


def check_one_whole_answer(events: list, words: list[str]) -> None:
    """`Accepted`, each token once and in order, `Done`."""
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Done)
    deltas = events[1:-1]
    assert all(isinstance(event, Delta) for event in deltas)
    assert [event.offset for event in deltas] == list(range(len(words)))
    assert [event.text for event in deltas] == words


def in_order(mesh, *nodes):
    """The nodes as round robin takes them from its first turn on."""
    return sorted(nodes, key=lambda node: node.peer_id)


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


async def test_an_answer_arrives_once_and_names_its_node(autojump_clock, mesh, words):
    node = await mesh.node()
    dispatch = dispatch_of(mesh)
    events = await events_of(dispatch)
    check_one_whole_answer(events, words)
    assert (events[0].node, events[0].attempts) == (node.peer_id, 1)
    assert (dispatch.totals.requests, dispatch.totals.succeeded, dispatch.totals.in_flight) == (1, 1, 0)


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


async def test_a_node_that_stops_without_an_end_is_a_failure(autojump_clock, mesh, words):
    one, two = in_order(mesh, await mesh.node(), await mesh.node())

    async def nothing(request, emit):
        emit(Accepted())

    one.script.append(nothing)
    check_one_whole_answer(await events_of(dispatch_of(mesh)), words)
    assert len(two.requests) == 1


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


async def test_a_request_that_kills_workers_stops_at_the_bound(autojump_clock, mesh, failing):
    died = BackendFailed("the worker died", code="worker_died")
    nodes = [await mesh.node(failing(died)) for _ in range(6)]
    with pytest.raises(BackendFailed, match="worker died"):
        await events_of(dispatch_of(mesh, max_failures=4))
    assert sum(len(node.requests) for node in nodes) == 4


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


async def test_going_on_is_not_paid_for(autojump_clock, mesh, failing, words, monkeypatch):
    monkeypatch.setattr(dispatch_module, "RETRY_BURST", 0.0)
    monkeypatch.setattr(dispatch_module, "RETRY_SHARE", 0.0)
    one, _two = in_order(mesh, await mesh.node(), await mesh.node())
    one.script.append(failing(BackendFailed("boom"), after=2))
    dispatch = dispatch_of(mesh)
    check_one_whole_answer(await events_of(dispatch), words)
    assert (dispatch.totals.resumed, dispatch.retries.refused) == (1, 0)


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
