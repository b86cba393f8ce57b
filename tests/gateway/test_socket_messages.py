import json

import pytest

from gateway.socket_messages import Inference, Ping, Subscribe, parse, request_id_in, request_of
from mesh.errors import BadRequest


def inference(**fields) -> Inference:
    message = parse(json.dumps({"type": "inference", "model": "m"} | fields))
    assert isinstance(message, Inference)
    return message


def test_messages_are_told_apart_by_type():
    assert isinstance(parse('{"type": "ping", "timestamp": "2026-01-01"}'), Ping)
    subscribe = parse('{"type": "subscribe", "topics": ["node"]}')
    assert isinstance(subscribe, Subscribe)
    assert subscribe.topics == ["node"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a JSON object"),
        ("{", "not a JSON object"),
        ("[1]", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ("{}", "unknown message type 'None'.*ping"),
        ('{"type": "dance"}', "unknown message type 'dance'.*inference, ping"),
        ('{"type": ["ping"]}', "unknown message type"),
        ('{"type": "subscribe"}', "topics"),
        ('{"type": "subscribe", "topics": "node"}', r"\$\.topics"),
        ('{"type": "inference", "inputs": "x"}', "model"),
        ('{"type": "inference", "model": "m", "inputs": "x", "parameters": {"temperature": 3}}', r"\$\.parameters\.temperature"),
        ('{"type": "inference", "model": "m", "inputs": "x", "parameters": {"max_tokens": 0}}', r"\$\.parameters\.max_tokens"),
        (
            '{"type": "inference", "model": "m", "parameters": {"max_length": 18446744073709551616}}',
            r"\$\.parameters\.max_length",
        ),
        ('{"type": "inference", "model": "m", "parameters": {"top_k": 2147483648}}', r"\$\.parameters\.top_k"),
        ('{"type": "inference", "model": "m", "parameters": {"seed": 9223372036854775808}}', r"\$\.parameters\.seed"),
        (
            '{"type": "inference", "model": "m", "messages": [{"role": "wizard", "content": "x"}]}',
            r"\$\.messages\[0\]\.role",
        ),
        ('{"type": "cancel"}', "request_id"),
    ],
)
def test_a_bad_message_is_explained(text, says):
    with pytest.raises(BadRequest, match=says):
        parse(text)


def test_the_request_id_of_a_bad_message_is_found_where_there_is_one():
    assert request_id_in('{"type": "inference", "request_id": "r1"}') == "r1"
    assert request_id_in('{"request_id": 5}') is None
    assert request_id_in("{") is None


def test_inputs_are_a_raw_prompt_and_messages_a_chat():
    prompt = request_of(inference(inputs="once"), tenant="t")
    assert (prompt.task, prompt.prompt, prompt.messages, prompt.tenant) == ("completion", "once", None, "t")
    assert (prompt.max_tokens, prompt.temperature) == (16, 1.0)
    chat = request_of(inference(messages=[{"role": "user", "content": "hi"}]), tenant="t")
    assert (chat.task, chat.messages) == ("chat", [{"role": "user", "content": "hi"}])
    assert (chat.max_tokens, chat.temperature, chat.top_p, chat.top_k) == (512, 0.7, 0.9, 50)


def test_parameters_reach_the_request():
    given = {"temperature": 0, "top_p": 0.5, "top_k": 3, "seed": 7, "stop": "END", "max_new_tokens": 9}
    request = request_of(inference(inputs="x", parameters=given), tenant="t")
    assert (request.temperature, request.top_p, request.top_k, request.seed) == (0, 0.5, 3, 7)
    assert (request.stop, request.max_tokens, request.max_length) == (["END"], 9, None)


def test_max_length_counts_the_prompt_and_the_strictest_limit_holds():
    only = request_of(inference(inputs="x", parameters={"max_length": 100}), tenant="t")
    assert (only.max_tokens, only.max_length) == (100, 100)
    both = request_of(inference(inputs="x", parameters={"max_length": 100, "max_new_tokens": 5, "max_tokens": 8}), tenant="t")
    assert (both.max_tokens, both.max_length) == (5, 100)


@pytest.mark.parametrize(
    "fields", [{}, {"inputs": "x", "messages": [{"role": "user", "content": "y"}]}, {"inputs": "x", "task": "paint"}]
)
def test_a_request_that_cannot_be_is_refused(fields):
    with pytest.raises(BadRequest):
        request_of(inference(**fields), tenant="t")


def test_each_request_gets_its_own_id_and_seed():
    one, two = (request_of(inference(inputs="x"), tenant="t") for _ in range(2))
    assert one.request_id != two.request_id
    assert one.seed != two.seed


def test_penalties_travel():
    given = {"min_p": 0.1, "repetition_penalty": 1.2, "presence_penalty": -1.0, "frequency_penalty": 0.5}
    message = parse(json.dumps({"type": "inference", "model": "m", "inputs": "x", "parameters": given}))
    made = request_of(message, tenant="t")
    assert {name: getattr(made, name) for name in given} == given
