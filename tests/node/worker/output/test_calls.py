"""Tool calls found in text, whole and letter by letter."""

from __future__ import annotations

from typing import Any

import pytest

from node.worker.output.calls import CallParser
from node.worker.output.formats import ModelFormat

HERMES = ModelFormat(calls="hermes")
MISTRAL = ModelFormat(calls="mistral")
NEWER = ModelFormat(calls="mistral", named_arguments=True)
LLAMA = ModelFormat(calls="llama3")
WEATHER = [("weather", '{"city": "Köln"}')]
TWO = [("weather", '{"a": "}{\\"]"}'), ("time", '{"zone": {"x": [1, 2]}}')]


def parse(model: ModelFormat, pieces: list[str]) -> tuple[str, list[tuple[str, str]], list[str]]:
    parser = CallParser(model, names={"weather", "time"}, identity="r/1")
    texts: list[str] = []
    calls: dict[int, list[str]] = {}
    for found in [*(parser.push(piece) for piece in pieces), parser.finish()]:
        texts.append(found.text)
        for call in found.calls:
            entry = calls.setdefault(call.index, ["", "", ""])
            assert not (call.id and entry[0])
            entry[0] += call.id
            entry[1] += call.name
            entry[2] += call.arguments
    assert parser.count == len(calls)
    return "".join(texts), [(entry[1], entry[2]) for entry in calls.values()], [entry[0] for entry in calls.values()]


CASES: list[tuple[ModelFormat, str, str, list[tuple[str, str]]]] = [
    (HERMES, "Let me look.", "Let me look.", []),
    (HERMES, '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>', "", WEATHER),
    (HERMES, 'Sure.\n<tool_call>{"arguments": {"city": "Köln"}, "name": "weather"}</tool_call>\n', "Sure.\n", WEATHER),
    (
        HERMES,
        (
            '<tool_call>\n{"name": "weather", "arguments": {"a": "}{\\"]"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "time", "arguments": {"zone": {"x": [1, 2]}}}\n</tool_call>'
        ),
        "",
        TWO,
    ),
    (HERMES, '<tool_call>\n{"name": "weather", "arguments": "{\\"city\\": \\"Köln\\"}"}\n</tool_call>', "", WEATHER),
    (HERMES, '<tool_call>{"name": "time"}</tool_call>', "", [("time", "{}")]),
    (HERMES, "<tool_call> nothing </tool_call>", "<tool_call> nothing </tool_call>", []),
    (HERMES, '<tool_call>{"nam": 1}', '<tool_call>{"nam": 1}', []),
    (HERMES, "a < b <tool", "a < b <tool", []),
    (HERMES, '<tool_call>{"name": "weather", "arguments": {"ci', "", [("weather", '{"ci')]),
    (HERMES, '<tool_call>{"na', '<tool_call>{"na', []),
    (MISTRAL, '[TOOL_CALLS][{"name": "weather", "arguments": {"city": "Köln"}}]', "", WEATHER),
    (
        MISTRAL,
        (
            '[TOOL_CALLS] [{"name": "weather", "arguments": {"a": "}{\\"]"}}, '
            '{"name": "time", "arguments": {"zone": {"x": [1, 2]}}}]'
        ),
        "",
        TWO,
    ),
    (MISTRAL, "[TOOL", "[TOOL", []),
    (NEWER, '[TOOL_CALLS]weather[ARGS]{"city": "Köln"}', "", WEATHER),
    (NEWER, '[TOOL_CALLS]weather{"a": "}{\\"]"}[TOOL_CALLS]time[ARGS]{"zone": {"x": [1, 2]}}', "", TWO),
    (LLAMA, '{"name": "weather", "parameters": {"city": "Köln"}}', "", WEATHER),
    (LLAMA, '<|python_tag|>{"name": "weather", "parameters": {"city": "Köln"}}', "", WEATHER),
    (
        LLAMA,
        '{"name": "weather", "parameters": {"a": "}{\\"]"}}; {"name": "time", "parameters": {"zone": {"x": [1, 2]}}}',
        "",
        TWO,
    ),
    (LLAMA, '{"answer": 42}', '{"answer": 42}', []),
    (LLAMA, '{"name": "Zoe", "age": 3}', '{"name": "Zoe", "age": 3}', []),
    (LLAMA, "Hello {", "Hello {", []),
]


@pytest.mark.parametrize(("model", "text", "speech", "calls"), CASES)
def test_calls_are_found_however_the_text_is_cut(model: ModelFormat, text: str, speech: str, calls: list[Any]) -> None:
    whole = parse(model, [text])
    assert whole[:2] == (speech, calls)
    assert len(set(whole[2])) == len(calls)
    assert parse(model, list(text)) == whole
    for cut in range(1, len(text)):
        assert parse(model, [text[:cut], text[cut:]]) == whole


def test_arguments_are_told_while_they_arrive() -> None:
    parser = CallParser(HERMES, names={"weather"}, identity="r/1")
    assert parser.push('<tool_call>\n{"name": "weather", "arguments"').calls[0].name == "weather"
    assert [call.arguments for call in parser.push(': {"city').calls] == ['{"city']
    assert [call.arguments for call in parser.push('": 1}').calls] == ['": 1}']


def test_ids_belong_to_the_request() -> None:
    text = ['<tool_call>{"name": "time"}</tool_call>']
    assert parse(HERMES, text)[2] == parse(HERMES, text)[2]
    other = CallParser(HERMES, names=(), identity="r/2").push(text[0]).calls[0].id
    assert other != parse(HERMES, text)[2][0]
    assert len(parse(NEWER, ["[TOOL_CALLS]time{}"])[2][0]) == 9
