"""The strictest of context, max_length and max_tokens."""

from __future__ import annotations

import pytest

from mesh.errors import BadRequest
from mesh.messages.inference import InferenceRequest
from node.room import new_tokens


def request(**fields) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", **fields)


@pytest.mark.parametrize(
    ("limits", "room"),
    [
        ({}, 90),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 1000}, 90),
        ({"max_length": 15}, 5),
        ({"max_length": 1000}, 90),
        ({"max_length": 15, "max_tokens": 7}, 5),
        ({"max_length": 30, "max_tokens": 7}, 7),
    ],
)
def test_the_strictest_limit_holds(limits, room):
    assert new_tokens(request(**limits), prompt_tokens=10, context_length=100) == room


@pytest.mark.parametrize(("task", "param"), [("chat", "messages"), ("completion", "prompt")])
def test_a_prompt_that_fills_the_context_is_refused(task, param):
    with pytest.raises(BadRequest, match="100 tokens and the model's context only 100; shorten") as caught:
        new_tokens(request(task=task, max_length=5), prompt_tokens=100, context_length=100)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", param)


def test_a_prompt_that_reaches_max_length_is_refused():
    with pytest.raises(BadRequest, match="10 leaves no room") as caught:
        new_tokens(request(max_length=10), prompt_tokens=10, context_length=100)
    assert caught.value.param == "max_length"
