"""Requests are prepared beside the engine, in two lanes that are bounded."""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING, Any

import pytest

from mesh.errors import BadRequest, Busy, MeshError
from mesh.messages.inference import InferenceRequest
from node.worker.intake import Intake, Prepared
from node.worker.lanes import SMALL, Lanes, is_large
from node.worker.sequence import Sequence

if TYPE_CHECKING:
    from collections.abc import Iterator

HANG = 20


def chat(content: Any = "Hi", *, count: int = 1, **fields: Any) -> InferenceRequest:
    messages = [{"role": "user", "content": content}] * count
    return InferenceRequest(request_id="r", model="m", messages=messages, **fields)


def completion(prompt: Any) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", task="completion", prompt=prompt)


@pytest.fixture
def intake(tokenizer: Any) -> Intake:
    return Intake(tokenizer, vocabulary=512, end_tokens=frozenset({2}), context_length=512)


class Gate:
    """Lets nobody's chat prompt through while it is closed, in lanes that are `slow` or any."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        prepare = Intake.prepare

        def gated(intake: Intake, number: int, request: InferenceRequest, **options: Any) -> Prepared:
            if is_large(request):
                assert self.open.wait(HANG)
            return prepare(intake, number, request, **options)

        monkeypatch.setattr(Intake, "prepare", gated)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open.set()


LARGE = "x" * (SMALL + 1)


@pytest.mark.parametrize(
    ("request_", "large"),
    [
        (chat(), False),
        (chat(LARGE), True),
        (chat("x", count=100_000), True),
        (chat([{"type": "text", "text": LARGE}]), True),
        (chat([{"type": "text", "text": "x"}] * 5000), True),
        (chat("x", count=500), False),
        (completion("x" * SMALL), False),
        (completion(LARGE), True),
        (completion([5] * (SMALL + 1)), True),
        (InferenceRequest(request_id="r", model="m", task="embedding"), False),
    ],
)
def test_what_is_large(request_: InferenceRequest, large: bool) -> None:
    assert is_large(request_) is large


def test_deep_messages_are_measured_too() -> None:
    value: Any = "x" * SMALL
    for _ in range(5000):
        value = [value]
    assert is_large(chat(value))


def test_a_large_request_holds_up_no_small_one(intake: Intake, gate: Gate) -> None:
    done: queue.Queue[Prepared] = queue.Queue()
    lanes = Lanes(intake, done.put, limit=8)
    lanes.start()
    assert lanes.put(1, chat(LARGE)) is None
    assert lanes.put(2, chat()) is None
    first = done.get(timeout=HANG)
    assert isinstance(first.result, Sequence)
    assert (first.number, lanes.arrive(first)) == (2, True)
    gate.open.set()
    second = done.get(timeout=HANG)
    assert isinstance(second.result, BadRequest)
    assert second.result.code == "context_length_exceeded"
    assert lanes.arrive(second)
    assert not lanes.arrive(second)


def test_a_lane_is_bounded(intake: Intake, gate: Gate) -> None:
    lanes = Lanes(intake, lambda _: None, limit=2)
    refused = [lanes.put(number, chat(LARGE)) for number in range(4)]
    assert [each is None for each in refused] == [True, True, False, False]
    assert isinstance(refused[2], Prepared)
    assert isinstance(refused[2].result, Busy)
    assert lanes.put(5, chat()) is None
    assert lanes.abort(2) is None


def test_an_aborted_request_ends_at_once_and_never_arrives(intake: Intake, gate: Gate) -> None:
    done: queue.Queue[Prepared] = queue.Queue()
    lanes = Lanes(intake, done.put, limit=8)
    lanes.start()
    for number in (1, 2, 3):
        lanes.put(number, chat(LARGE))
    for number in (1, 2):
        ended = lanes.abort(number)
        assert ended
        assert isinstance(ended.result, MeshError)
        assert ended.result.code == "cancelled"
    assert lanes.abort(1) is None
    gate.open.set()
    arrived = []
    while True:
        prepared = done.get(timeout=HANG)
        if lanes.arrive(prepared):
            arrived.append(prepared.number)
            break
    assert arrived == [3]


def test_both_lanes_make_the_same_prompt_as_the_engine(intake: Intake) -> None:
    request = chat("Grüße", created=1_000_000_000)
    prompts = []
    for each in (intake, intake.beside("quick"), intake.beside("slow")):
        result = each.prepare(1, request).result
        assert isinstance(result, Sequence)
        prompts.append(result.tokens)
    assert prompts[0] == prompts[1] == prompts[2]
