import pytest

from mesh.messages.inference import Delta, Done, Grammar, InferenceRequest, Said
from mesh.openai.remote.answer import Answer
from mesh.openai.remote.client import body_of
from mesh.openai.remote.continuing import FINAL_MESSAGE, behind, can_be_continued

USER = {"role": "user", "content": "count"}


def request(**more) -> InferenceRequest:
    return InferenceRequest(**{"request_id": "r", "model": "m", "messages": [USER], **more})


def test_a_chat_goes_on_with_its_last_message():
    body = body_of(request(said=Said("one, two", 3), max_tokens=10, min_tokens=5))
    assert body["messages"] == [USER, {"role": "assistant", "content": "one, two"}]
    assert body.items() >= FINAL_MESSAGE.items()
    assert (body["max_tokens"], body["min_tokens"]) == (7, 2)


def test_a_completion_goes_on_behind_its_prompt():
    body = body_of(request(task="completion", messages=None, prompt="count: ", said=Said("one", 1)))
    assert body["prompt"] == "count: one"
    assert FINAL_MESSAGE.keys().isdisjoint(body)


def test_one_more_token_is_asked_for_where_all_may_have_been_given():
    asked = behind(request(said=Said("x", 30), max_tokens=10, min_tokens=5))
    assert (asked.max_tokens, asked.min_tokens) == (1, 0)


def test_without_anything_said_nothing_changes():
    asked = request(max_tokens=10)
    assert behind(asked) is asked
    assert FINAL_MESSAGE.keys().isdisjoint(body_of(asked))


@pytest.mark.parametrize(
    ("more", "can"),
    [
        ({}, True),
        ({"task": "completion", "messages": None, "prompt": "x"}, True),
        ({"tools": [{"type": "function"}]}, True),
        ({"task": "completion", "messages": None, "prompt": [1, 2]}, False),
        ({"task": "embedding", "messages": None, "inputs": ["x"]}, False),
        ({"n": 2}, False),
        ({"echo": True}, False),
        ({"grammar": Grammar("json_object")}, False),
        ({"tool_choice": "required"}, False),
        ({"messages": [USER, {"role": "assistant", "content": "one"}]}, False),
    ],
)
def test_what_leaves_room_for_it(more, can):
    assert can_be_continued(request(**more)) is can


async def test_what_was_given_before_counts_as_the_answers():
    events: list = []
    answer = Answer(request(said=Said("one, two", 3)), events.append)
    answer.feed(b'data: {"choices": [{"delta": {"content": " three"}, "finish_reason": "stop"}]}\n\n')
    answer.feed(b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}\n\ndata: [DONE]\n\n')
    answer.end()
    assert events[0] == Delta(3, [], " three")
    assert isinstance(events[1], Done)
    assert (events[1].usage.prompt_tokens, events[1].usage.completion_tokens) == (6, 5)
