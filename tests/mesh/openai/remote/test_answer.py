import json

import pytest

from mesh.errors import BackendFailed
from mesh.messages.inference import Delta, Done, InferenceRequest, ToolCallDelta
from mesh.openai.remote.answer import Answer
from mesh.openai.remote.event_stream import MAX_EVENT
from mesh.openai.remote.pieces import estimated_tokens

REQUEST = InferenceRequest(request_id="r", model="m", messages=[{"role": "user", "content": "12345678"}])


def chunk(content=None, finish=None, **more) -> dict:
    return {"choices": [{"index": 0, "delta": {} if content is None else {"content": content}, "finish_reason": finish}], **more}


def stream(*chunks, end: str = "\n\n", done: bool = True) -> bytes:
    lines = ["data: " + json.dumps(one) for one in chunks] + (["data: [DONE]"] if done else [])
    return "".join(line + end for line in lines).encode()


def run(*pieces: bytes) -> list:
    events: list = []
    answer = Answer(REQUEST, events.append)
    for piece in pieces:
        answer.feed(piece)
    answer.end()
    return events


WHOLE = stream(
    chunk(""),
    chunk("Grüße, "),
    chunk("W"),
    chunk(None, "length"),
    {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 9}},
)


async def test_a_stream_is_one_delta_per_piece_and_done_with_the_servers_counts():
    *deltas, done = run(WHOLE)
    assert deltas == [Delta(0, [], "Grüße, "), Delta(1, [], "W")]
    assert isinstance(done, Done)
    assert (done.finish_reason, done.usage.prompt_tokens, done.usage.completion_tokens) == ("length", 5, 9)


async def test_where_the_bytes_are_cut_does_not_matter():
    for size in (1, 2, 7):
        pieces = [WHOLE[start : start + size] for start in range(0, len(WHOLE), size)]
        assert [event for event in run(*pieces) if isinstance(event, Delta)] == [Delta(0, [], "Grüße, "), Delta(1, [], "W")]


@pytest.mark.parametrize(
    "data",
    [
        stream(chunk("x"), chunk(None, "stop"), done=False),
        stream(chunk("x"), chunk(None, "stop"), end="\r\n\r\n"),
        stream(chunk("x")),
        b": a comment\nevent: message\n" + stream(chunk("x", "stop")),
        stream(chunk("x"), chunk(None, "an unheard-of reason")),
        stream({"choices": [{"text": "x", "index": 0}]}),
        stream(chunk("x", "stop"), done=False).rstrip(),
    ],
)
async def test_servers_that_do_it_a_little_differently_are_understood(data):
    if not data.endswith(b"\n"):
        data += b"\n"
    delta, done = run(data)
    assert (delta.text, done.finish_reason) == ("x", "stop")


async def test_without_counts_pieces_are_counted_and_the_prompt_is_estimated():
    *_, done = run(stream(chunk("a"), chunk("b", "stop")))
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 2)
    assert estimated_tokens(InferenceRequest(request_id="r", model="m", prompt=[1, 2, 3])) == 3


async def test_reasoning_is_no_text():
    data = stream({"choices": [{"delta": {"reasoning_content": "hm"}}]}, chunk("x", "stop"))
    assert run(data)[:2] == [Delta(0, [], "", reasoning="hm"), Delta(1, [], "x")]


async def test_tool_calls_are_passed_on():
    first = {"index": 0, "id": "c1", "type": "function", "function": {"name": "f", "arguments": ""}}
    data = stream(
        {"choices": [{"delta": {"tool_calls": [first]}}]},
        {"choices": [{"delta": {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]}}]},
        {"choices": [{"delta": {}, "finish_reason": "tool_calls"}]},
    )
    one, two, done = run(data)
    assert one.tool_calls == [ToolCallDelta(0, "c1", "f")]
    assert two.tool_calls == [ToolCallDelta(0, arguments="{}")]
    assert done.finish_reason == "tool_calls"
    events: list = []
    answer = Answer(REQUEST, events.append)
    unnumbered = [{"id": name, "function": {"name": name, "arguments": "{}"}} for name in "ab"]
    message = {"content": None, "tool_calls": unnumbered}
    answer.take_whole(json.dumps({"choices": [{"message": message, "finish_reason": "tool_calls"}]}).encode())
    assert [(call.index, call.name) for call in events[0].tool_calls] == [(0, "a"), (1, "b")]


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (stream(chunk("x"), done=False), "incomplete_answer"),
        (b"", "incomplete_answer"),
        (b"data: {]\n\n", "bad_answer"),
        (b'data: {"choices": 7}\n\n', "bad_answer"),
        (b"data: \xff\n\n", "bad_answer"),
        (stream({"error": {"message": "out of memory"}}), "service_failed"),
        (b"data: " + b"x" * MAX_EVENT, "bad_answer"),
        (b"data: y\n" * MAX_EVENT, "bad_answer"),
    ],
)
async def test_what_is_no_whole_answer_is_the_services_failure(data, code):
    with pytest.raises(BackendFailed) as caught:
        run(data)
    assert caught.value.code == code


async def test_an_answer_in_one_piece_is_one_delta():
    events: list = []
    answer = Answer(REQUEST, events.append)
    answer.take_whole(json.dumps({"choices": [{"message": {"content": "all"}, "finish_reason": "stop"}]}).encode())
    answer.end()
    assert (events[0].text, events[1].finish_reason) == ("all", "stop")
