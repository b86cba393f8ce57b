import pytest
import trio

from mesh.embedding import MOST_AT_ONCE, embed, inputs_of
from mesh.errors import BadRequest
from mesh.messages.inference import Accepted, Done, InferenceRequest, Performance, Usage
from mesh.vectors import pack, unpack

PERFORMANCE = Performance(1, 0, 0, 0, 1)


class Lengths:
    """Each input's vector is its length. Takes `seconds` for each request."""

    def __init__(self, seconds=0.0):
        self.requests = []
        self._seconds = seconds

    async def infer(self, request, emit):
        self.requests.append(request)
        await trio.sleep(self._seconds)
        emit(Accepted(node="a"))
        vectors = [pack([float(len(one))]) for one in request.inputs]
        emit(Done("stop", Usage(len(vectors), 0), PERFORMANCE, embeddings=vectors))


def request(**fields):
    return InferenceRequest(request_id="r", model="m", task="embedding", stream=False, **fields)


async def ignore(_vectors, _accepted):
    pass


def test_what_was_meant_by_the_inputs():
    assert inputs_of("text") == ["text"]
    assert inputs_of([5, 6]) == [[5, 6]]
    assert inputs_of(["a", [5]]) == ["a", [5]]


def test_the_field_is_named_as_the_client_calls_it():
    with pytest.raises(BadRequest, match=r"inputs\[1\] is empty") as caught:
        inputs_of(["a", ""], field="inputs")
    assert caught.value.param == "inputs[1]"


async def test_the_next_part_is_asked_for_when_the_last_one_was_taken(autojump_clock):
    service, taken = Lengths(), []

    async def take(vectors, accepted):
        assert accepted.node == "a"
        await trio.sleep(1)
        taken.extend(unpack(vector)[0] for vector in vectors)
        assert len(service.requests) * MOST_AT_ONCE >= len(taken) > (len(service.requests) - 1) * MOST_AT_ONCE

    inputs = ["x" * (1 + index % 5) for index in range(MOST_AT_ONCE * 3)]
    embedded = await embed(service, request(), inputs, take)
    assert taken == [float(len(one)) for one in inputs]
    assert embedded.usage == {"prompt_tokens": len(inputs), "total_tokens": len(inputs)}
    ids = [asked.request_id for asked in service.requests]
    assert (ids[0], len(set(ids))) == ("r", 3)


async def test_the_parts_share_a_deadline(autojump_clock):
    service = Lengths(seconds=2)
    await embed(service, request(deadline_ms=3000), ["x"] * (MOST_AT_ONCE * 2 + 1), ignore)
    assert [asked.deadline_ms for asked in service.requests] == [3000, 1000, 1], "who answers refuses the last one"
