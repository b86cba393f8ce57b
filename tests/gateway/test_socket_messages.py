import pytest

from gateway.socket_messages import Ping, Subscribe, parse, request_id_in
from mesh.errors import BadRequest


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
        ('{"type": "inference", "model": "m", "options": {"priority": 101}}', r"<= 100 - at `\$\.options\.priority`"),
        ('{"type": "inference", "model": "m", "options": {"priority": "high"}}', r"`int`.*\$\.options\.priority"),
        ('{"type": "inference", "model": "m", "options": {"deadline_ms": 0}}', r">= 1 - at `\$\.options\.deadline_ms`"),
        ('{"type": "inference", "model": "m", "options": {"deadline_ms": 86400001}}', r"\$\.options\.deadline_ms"),
        ('{"type": "inference", "model": "m", "options": {"hedge": "on"}}', r"`bool.*\$\.options\.hedge"),
        ('{"type": "inference", "model": "m", "options": {"resume": null}}', r"`bool.*\$\.options\.resume"),
        ('{"type": "inference", "model": "m", "options": {"user": 7}}', r"`str.*\$\.options\.user"),
        (
            '{"type": "inference", "model": "m", "options": {"deadline": 5}}',
            "unknown field `deadline`.*the options are deadline_ms, hedge, priority, prompt_cache_key, resume, user",
        ),
        ('{"type": "inference", "model": "m", "parameters": {"encoding_format": "int8"}}', r"\$\.parameters\.encoding_format"),
    ],
)
def test_a_bad_message_is_explained(text, says):
    with pytest.raises(BadRequest, match=says):
        parse(text)


def test_the_request_id_of_a_bad_message_is_found_where_there_is_one():
    assert request_id_in('{"type": "inference", "request_id": "r1"}') == "r1"
    assert request_id_in('{"request_id": 5}') is None
    assert request_id_in("{") is None
