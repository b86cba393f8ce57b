"""One answer as server-sent events, and the same answer written by two gateways one after the other."""

from __future__ import annotations

import re

import msgspec
import pytest

from mesh.errors import BackendFailed
from mesh.http.message import StreamWriter
from mesh.messages.inference import (
    Accepted,
    Alternative,
    Delta,
    Done,
    InferenceRequest,
    Performance,
    TokenLogprob,
    ToolCallDelta,
    Usage,
)
from mesh.openai.event_stream import EventStream
from mesh.openai.wording import Wording
from node.output_log import OutputLog

TOKEN = "a-token"
ACCEPTED = Accepted(node="node", resume_token=TOKEN)
DONE = Done("stop", Usage(3, 9), Performance(1.0, 2.0, 3.0, 4.0, 1))


def scored(text: str) -> list[TokenLogprob]:
    return [TokenLogprob(text.encode(), -0.5, [Alternative(text.encode(), -0.5), Alternative(b"other", -2.0)])]


CHAT = [
    Delta(0, [1], "", reasoning="well"),
    Delta(1, [2], "a", logprobs=scored("a")),
    Delta(0, [3], "x", choice=1),
    Delta(2, [4], ""),
    Delta(3, [5], "\u2028ä", logprobs=scored("ä")),
    Delta(1, [6], "y", choice=1),
    Delta(2, [], "", choice=1, finish_reason="length"),
    Delta(4, [7], "", tool_calls=[ToolCallDelta(0, "call_1", "f", "")]),
    Delta(5, [8], "", tool_calls=[ToolCallDelta(0, arguments='{"a": 1}')]),
    Delta(6, [9], "z"),
    Delta(7, [], "", finish_reason="stop"),
]
COMPLETION = [Delta(at, [at], text, logprobs=scored(text)) for at, text in enumerate(["one ", "two ", "äö ", "four"])]


def request(task: str, n: int = 1) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", task=task, n=n, logprobs=1, created=9)  # type: ignore[arg-type]


class Says:
    def __init__(self, events: list, error: Exception | None = None) -> None:
        self.events, self.error = events, error

    async def infer(self, _request, emit) -> None:
        for event in self.events:
            emit(event)
        if self.error:
            raise self.error


async def written(made: InferenceRequest, service: Says, **options) -> list[bytes]:
    """The writes of one stream."""
    writes: list[bytes] = []
    wording = Wording(made.task, made, include_usage=True)
    kept = options.pop("kept", None)
    if kept is not None:
        wording.go_on(kept.characters, kept.ended)
    await EventStream(wording, StreamWriter(writes.append), **options).run(service, made)
    return writes


@pytest.mark.parametrize(
    ("made", "deltas"), [(request("chat", 2), CHAT), (request("completion"), COMPLETION)], ids=["chat", "completion"]
)
async def test_two_gateways_write_together_what_one_would_have(made, deltas):
    whole = b"".join(await written(made, Says([ACCEPTED, *deltas, DONE])))
    log = OutputLog()
    for delta in deltas:
        log.add(delta)
    for cut in range(1, len(deltas) + 1):
        if cut < len(deltas) and not deltas[cut].token_ids:
            continue  # the client cannot tell whether it got an event without tokens; it gets it again, below
        before = log.before(sum(len(delta.token_ids) for delta in deltas[:cut]))
        assert before is not None
        tokens = sum(map(len, before.token_ids))
        said = deltas[: before.index]
        first: list[bytes] = []
        wording = Wording(made.task, made, include_usage=True)
        with pytest.raises(BackendFailed):
            await EventStream(wording, StreamWriter(first.append)).run(Says([ACCEPTED, *said], BackendFailed("gone")), made)
        # The last write is the error, which a gateway that is killed does not say.
        rest = await written(made, Says([ACCEPTED, *deltas[before.index :], DONE]), kept=before, tokens=tokens, opened=True)
        assert b"".join(first[:-1]) + b"".join(rest) == whole


async def test_every_event_has_the_id_of_what_came_by_then():
    whole = b"".join(await written(request("chat", 2), Says([ACCEPTED, *CHAT, DONE])))
    events = whole.decode().split("\n\n")[:-2]
    assert all(re.fullmatch(rf"id: {TOKEN}:\d+\ndata: {{.*}}", event) for event in events)
    counts = [int(event.partition(":")[2].partition(":")[2].partition("\n")[0]) for event in events]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 9)
    assert whole.endswith(b"\n\ndata: [DONE]\n\n")


async def test_without_a_token_there_are_no_ids():
    whole = b"".join(await written(request("chat", 2), Says([Accepted(), *CHAT, DONE])))
    assert b"id: " not in whole


@pytest.mark.parametrize("exact", [True, False])
async def test_an_answer_that_is_not_exact_says_so_at_its_end(exact):
    done = msgspec.structs.replace(DONE, resumes=1, exact=exact)
    whole = b"".join(await written(request("chat", 2), Says([ACCEPTED, *CHAT, done])))
    assert whole.count(b'"resume":"approximate"') == (0 if exact else 1)
