import msgspec
import pytest

from mesh.messages.inference import Alternative, TokenLogprob
from mesh.openai.remote.probabilities import ChoiceLogprobs, token_logprobs

CHAT = {
    "content": [
        {
            "token": "\ufffd",
            "bytes": [0xC3],
            "logprob": -0.5,
            "top_logprobs": [{"token": "a", "logprob": -0.25}, {"token": "b", "bytes": None, "logprob": -1.0}],
        },
        {"token": "z", "bytes": [999], "logprob": -2.0},
    ]
}
COMPLETION = {"tokens": ["a", "b"], "token_logprobs": [None, -1.5], "top_logprobs": [{"x": -3.0, "a": -0.5}]}


def read(said: dict) -> list[TokenLogprob]:
    return token_logprobs(msgspec.convert(said, ChoiceLogprobs))


def test_a_chats_shape():
    first, second = read(CHAT)
    assert first == TokenLogprob(b"\xc3", -0.5, [Alternative(b"a", -0.25), Alternative(b"b", -1.0)])
    assert second == TokenLogprob(b"z", -2.0)


def test_a_completions_shape():
    assert read(COMPLETION) == [
        TokenLogprob(b"a", 0.0, [Alternative(b"a", -0.5), Alternative(b"x", -3.0)]),
        TokenLogprob(b"b", -1.5),
    ]


@pytest.mark.parametrize("said", [None, ChoiceLogprobs(), ChoiceLogprobs(content=[])])
def test_nothing_said_is_nothing(said):
    assert token_logprobs(said) == []
