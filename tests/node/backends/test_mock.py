import math

import msgspec
import pytest
import trio
import trio.testing

from mesh.errors import BackendFailed, BadRequest, Busy
from mesh.messages.inference import Accepted, Delta, Done, Grammar
from mesh.vectors import pack, unpack
from node.backends.mock import WORDS, MockBackend, MockSettings, embedding, fingerprint, parse_mock, prompt_text, token_at


@pytest.fixture
async def start(nursery):
    async def begin(**knobs) -> MockBackend:
        backend = MockBackend("m", MockSettings(**knobs))
        await nursery.start(backend.run)
        return backend

    return begin


async def answer(backend, request) -> tuple[str, Done]:
    events = []
    await backend.infer(request, events.append)
    assert isinstance(events[0], Accepted)
    assert isinstance(events[-1], Done)
    deltas = events[1:-1]
    assert [delta.offset for delta in deltas] == list(range(len(deltas)))
    return "".join(delta.text for delta in deltas), events[-1]


def test_a_token_depends_on_prompt_seed_and_position_only() -> None:
    first = [token_at(fingerprint("hello", 7), position) for position in range(50)]
    assert first == [token_at(fingerprint("hello", 7), position) for position in range(50)]
    assert first != [token_at(fingerprint("hello", 8), position) for position in range(50)]
    assert first != [token_at(fingerprint("hallo", 7), position) for position in range(50)]
    assert len(set(first)) > 20


def test_the_words_never_change() -> None:
    """Two versions of a node must agree, so the function is pinned by value."""
    assert len(set(WORDS)) == 64
    chosen = fingerprint("hello", 7)
    assert [WORDS[token_at(chosen, position)] for position in range(4)] == ["meadow", "ledge", "quarry", "dune"]


async def test_two_backends_answer_alike_alone_and_in_company(start, ask, autojump_clock) -> None:
    one, other = await start(tokens_per_second=50), await start(slots=2)
    alone, _ = await answer(one, ask())
    texts = []

    async def add(prompt: str) -> None:
        text, _ = await answer(other, ask(prompt))
        texts.append((prompt, text))

    async with trio.open_nursery() as nursery:
        for prompt in ("hello there", "b", "c", "d", "e"):
            nursery.start_soon(add, prompt)
    assert dict(texts)["hello there"] == alone
    assert len({text for _, text in texts}) == 5


async def test_usage_counts_words_and_length_ends_it(start, ask) -> None:
    backend = await start()
    text, done = await answer(backend, ask("one two three", max_tokens=5))
    assert (done.usage.prompt_tokens, done.usage.completion_tokens, done.finish_reason) == (3, 5, "length")
    assert len(text.split(" ")) == 5
    assert set(text.split(" ")) <= set(WORDS)
    whole, done = await answer(backend, ask("one two three"))
    assert done.finish_reason == "stop"
    assert whole.startswith(text)
    assert 16 <= done.usage.completion_tokens < 48


async def test_a_stop_string_cuts_even_inside_and_across_words(start, ask) -> None:
    backend = await start(length=10)
    whole, _ = await answer(backend, ask())
    words = whole.split(" ")
    across = words[3][-2:] + " " + words[4][:2]
    text, done = await answer(backend, ask(stop=["never to be found", across]))
    assert text == whole[: whole.index(across)]
    assert done.finish_reason == "stop"
    text, done = await answer(backend, ask(stop=[whole[:3]]))
    assert (text, done.usage.completion_tokens) == ("", 0)
    assert (await answer(backend, ask(stop=["never to be found"])))[0] == whole


async def test_the_context_bounds_prompt_and_answer(start, ask) -> None:
    backend = await start(context_length=8, length=100)
    _, done = await answer(backend, ask("a b c d e"))
    assert (done.usage.completion_tokens, done.finish_reason) == (3, "length")
    with pytest.raises(BadRequest) as caught:
        await backend.infer(ask("a b c d e f g h"), lambda event: None)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


async def test_max_length_counts_the_prompt(start, ask) -> None:
    backend = await start(length=100)
    _, done = await answer(backend, ask("a b c d e", max_length=9, max_tokens=50))
    assert (done.usage.completion_tokens, done.finish_reason) == (4, "length")
    with pytest.raises(BadRequest, match="max_length"):
        await backend.infer(ask("a b c d e", max_length=5), lambda event: None)


async def test_time_passes_as_the_knobs_say(start, ask, autojump_clock) -> None:
    backend = await start(tokens_per_second=10, first_token_ms=300, length=11, slots=1)
    times = []
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(
                backend.infer, ask(f"p {number}"), lambda event: times.append((trio.current_time() - begin, event))
            )
    first, second = [(time, event.performance) for time, event in times if isinstance(event, Done)]
    assert first[0] == pytest.approx(1.3, abs=0.02)
    assert second[0] == pytest.approx(2.6, abs=0.02)
    assert first[1].prefill_time_ms == pytest.approx(300, abs=20)
    assert first[1].tokens_per_second == pytest.approx(10, rel=0.02)
    assert second[1].queue_time_ms == pytest.approx(1300, abs=20)


async def test_a_later_request_does_not_wait_for_the_words_of_a_slow_one(start, ask, autojump_clock) -> None:
    backend = await start(tokens_per_second=0.1, first_token_ms=20, length=2)
    times = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(backend.infer, ask("first"), lambda event: None)
        await trio.sleep(1)
        nursery.start_soon(backend.infer, ask("second"), lambda event: times.append(trio.current_time()))
        await trio.sleep(1)
        assert len(times) == 2, "accepted and first word"


async def test_a_receiver_that_raises_ends_its_own_request_only(start, ask) -> None:
    backend = await start()

    def broken(event) -> None:
        if isinstance(event, Delta):
            raise RuntimeError("no room")

    with pytest.raises(RuntimeError, match="no room"):
        await backend.infer(ask(), broken)
    await answer(backend, ask())


async def test_one_step_serves_everybody_who_is_due(start, ask, autojump_clock) -> None:
    backend = await start(tokens_per_second=100, length=20)
    async with trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(backend.infer, ask(f"p {number}"), lambda event: None)
    assert backend.load.step <= 25


async def test_load_counts_and_busy_is_bounded(start, ask, autojump_clock) -> None:
    backend = await start(slots=2, max_waiting=1, hang_after_tokens=1)
    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(backend.infer, ask(f"p {number}"), lambda event: None)
        await trio.testing.wait_all_tasks_blocked()
        assert (backend.load.running, backend.load.waiting) == (2, 1)
        with pytest.raises(Busy):
            await backend.infer(ask(), lambda event: None)
        nursery.cancel_scope.cancel()
    assert (backend.load.running, backend.load.waiting) == (0, 0)


async def test_a_cancelled_request_leaves_its_slot_to_the_next(start, ask, autojump_clock) -> None:
    backend = await start(slots=1, tokens_per_second=1, length=5)
    heard = []
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(2.5):
            nursery.start_soon(answer, backend, ask("next"))
            await backend.infer(ask("gone"), heard.append)
        count = len(heard)
    assert len(heard) == count
    assert backend.load.running == 0


async def test_faults_happen_as_asked(start, ask) -> None:
    backend = await start(fail_rate=0.25)
    failed = 0
    for number in range(20):
        try:
            await answer(backend, ask(f"p {number}"))
        except BackendFailed:
            failed += 1
    assert failed == 5
    dying = await start(die_after_tokens=3)
    events = []
    with pytest.raises(BackendFailed) as caught:
        await dying.infer(ask(), events.append)
    assert caught.value.code == "worker_died"
    assert sum(isinstance(event, Delta) for event in events) == 3
    with pytest.raises(Busy):
        await (await start(busy=True)).infer(ask(), events.append)


async def test_several_answers_have_seeds_of_their_own(start, ask) -> None:
    backend = await start(length=5)
    events: list = []
    await backend.infer(ask(seed=3, n=3), events.append)
    texts = ["".join(event.text for event in events if isinstance(event, Delta) and event.choice == each) for each in range(3)]
    assert len(set(texts)) == 3
    assert texts[0] == (await answer(backend, ask(seed=3)))[0]
    ends = [event.choice for event in events if isinstance(event, Delta) and event.finish_reason]
    assert sorted(ends) == [0, 1, 2]
    assert [type(event) for event in events].count(Accepted) == 1
    assert isinstance(events[-1], Done)
    assert events[-1].usage.completion_tokens == 15
    assert backend.load.running == 0


async def test_several_answers_fail_as_one(start, ask) -> None:
    backend = await start(slots=1, max_waiting=1)
    with pytest.raises(Busy):
        await backend.infer(ask(n=4), lambda event: None)
    assert (backend.load.running, backend.load.waiting) == (0, 0)


async def test_lengths_that_were_asked_for(start, ask) -> None:
    backend = await start(length=5)
    assert (await answer(backend, ask(min_tokens=9)))[1].usage.completion_tokens == 9
    done = (await answer(backend, ask(ignore_eos=True, max_tokens=12)))[1]
    assert (done.usage.completion_tokens, done.finish_reason) == (12, "length")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logprobs": 0}, "logprobs"),
        ({"grammar": Grammar("json_object")}, "response_format"),
        ({"tool_choice": "required", "tools": [{}]}, "tool_choice"),
        ({"echo": True}, "echo"),
    ],
)
async def test_what_a_mock_cannot_honour_is_refused_by_name(start, ask, fields, param) -> None:
    with pytest.raises(BadRequest) as caught:
        await (await start()).infer(ask(**fields), lambda event: None)
    assert (caught.value.param, caught.value.code) == (param, "unsupported_parameter")


def test_every_kind_of_prompt_is_read(ask) -> None:
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}]
    assert prompt_text(ask(task="chat", messages=messages)) == "system: be brief\nuser: hi"
    assert prompt_text(ask([0, 1])) == "amber basin"
    assert prompt_text(ask("plain")) == "plain"


def test_models_and_knobs_are_read_from_one_line() -> None:
    models, settings = parse_mock(" model-a, model-b ;tokens_per_second=50; busy=true;slots=3")
    assert models == ["model-a", "model-b"]
    assert settings == MockSettings(tokens_per_second=50.0, busy=True, slots=3)
    assert parse_mock("a") == (["a"], MockSettings())


@pytest.mark.parametrize("args", ["", ";busy=true", "a;speed=3", "a;slots", "a;slots=many"])
def test_a_bad_line_says_why(args: str) -> None:
    with pytest.raises(ValueError, match="mock"):
        parse_mock(args)


async def test_a_vector_depends_on_the_text_only(start, ask) -> None:
    requests = [
        msgspec.structs.replace(ask(), task="embedding", inputs=inputs)
        for inputs in (["hello there", "hallo"], ["hello there", [1, 2]])
    ]
    (_, one), (_, other) = [await answer(await start(), request) for request in requests]
    assert one.embeddings[0] == other.embeddings[0] != one.embeddings[1]
    assert other.embeddings[1] == pack(embedding(f"{WORDS[1]} {WORDS[2]}"))
    assert all(math.hypot(*unpack(vector)) == pytest.approx(1) for vector in one.embeddings)
    assert (one.usage.prompt_tokens, one.usage.completion_tokens) == (3, 0)


async def test_a_shorter_vector_has_unit_length_too(start, ask) -> None:
    request = msgspec.structs.replace(ask(), task="embedding", inputs=["a"], dimensions=8)
    _, done = await answer(await start(), request)
    assert len(unpack(done.embeddings[0])) == 8
    assert math.hypot(*unpack(done.embeddings[0])) == pytest.approx(1)


@pytest.mark.parametrize(
    ("fields", "param"), [({"inputs": ["a"], "dimensions": 65}, "dimensions"), ({"inputs": ["a", "a b c d"]}, "input")]
)
async def test_vectors_that_it_cannot_make_are_refused(start, ask, fields, param) -> None:
    backend = await start(context_length=3)
    with pytest.raises(BadRequest) as caught:
        await backend.infer(msgspec.structs.replace(ask(), task="embedding", **fields), lambda _: None)
    assert caught.value.param == param
