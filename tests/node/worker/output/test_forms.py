"""Forced calls in each model's own layout: what a random model must say is read back as calls."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from mesh.errors import BadRequest
from mesh.messages.inference import Grammar, InferenceRequest
from node.worker.output.calls import CallParser
from node.worker.output.formats import ModelFormat
from node.worker.output.forms import grammar_of
from node.worker.output.grammar import Grammars

SCHEMA = {
    "type": "object",
    "$defs": {"day": {"type": "integer", "minimum": 1, "maximum": 31}},
    "properties": {"day": {"$ref": "#/$defs/day"}},
    "required": ["day"],
    "additionalProperties": False,
}
TOOLS = [
    {"type": "function", "function": {"name": "weather", "parameters": SCHEMA}},
    {"type": "function", "function": {"name": "time"}},
]
STYLES = [
    ModelFormat(calls="hermes"),
    ModelFormat(calls="mistral"),
    ModelFormat(calls="mistral", named_arguments=True),
    ModelFormat(calls="llama3"),
]


def request(**fields: Any) -> InferenceRequest:
    return InferenceRequest(request_id="r", model="m", **fields)


def said(tokenizer: Any, grammar: str, seed: int) -> str:
    """What random logits make under a grammar."""
    end = tokenizer.eos_token_id
    constraint = Grammars(tokenizer, vocabulary=512, end_tokens=[end]).constraint(grammar, param="p")
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = []
    while not constraint.finished and len(tokens) < 2000:
        row = torch.randn(512, generator=generator)
        constraint.restrict(row)
        token = int(row.argmax())
        if token == end:
            break
        constraint.take(token)
        tokens.append(token)
    text: str = tokenizer.decode(tokens, clean_up_tokenization_spaces=False)
    return text


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("parallel", [False, True])
def test_required_calls_are_calls(tokenizer: Any, style: ModelFormat, parallel: bool) -> None:
    grammar = grammar_of(request(tools=TOOLS, tool_choice="required", parallel_tool_calls=parallel), style)
    assert grammar is not None
    counts: set[int] = set()
    for seed in range(6):
        parser = CallParser(style, names={"weather", "time"}, identity="r")
        found, rest = parser.push(said(tokenizer, grammar, seed)), parser.finish()
        assert (found.text, rest.text, rest.calls) == ("", "", [])
        arguments: dict[int, str] = {}
        names: dict[int, str] = {}
        for call in found.calls:
            arguments[call.index] = arguments.get(call.index, "") + call.arguments
            names[call.index] = names.get(call.index, "") + call.name
        for index, name in names.items():
            given = json.loads(arguments[index])
            assert isinstance(given, dict)
            assert name == "time" or 1 <= given["day"] <= 31
        assert parser.completed == len(names) >= 1
        counts.add(len(names))
    assert counts == {1} if not parallel else max(counts) > 1


def test_a_named_tool_is_the_only_one(tokenizer: Any) -> None:
    grammar = grammar_of(request(tools=TOOLS, tool_choice="required", tool_name="weather", parallel_tool_calls=False), STYLES[0])
    assert grammar is not None
    assert all('"weather"' in said(tokenizer, grammar, seed) for seed in range(4))


def test_optional_calls_beside_a_form(tokenizer: Any) -> None:
    form = Grammar("json_schema", '{"type": "boolean"}')
    grammar = grammar_of(request(tools=TOOLS, grammar=form), STYLES[0])
    assert grammar is not None
    for seed in range(4):
        text = said(tokenizer, grammar, seed)
        assert text in ("true", "false") or text.startswith("<tool_call>")
    assert grammar_of(request(tools=TOOLS), STYLES[0]) is None


@pytest.mark.parametrize(
    ("fields", "style", "param"),
    [
        ({"tools": TOOLS}, ModelFormat(), "tools"),
        ({"tools": TOOLS, "grammar": Grammar("regex", "a")}, STYLES[0], "tools"),
        ({"tools": TOOLS, "tool_choice": "required", "tool_name": "x"}, STYLES[0], "tool_choice"),
    ],
)
def test_what_cannot_be_called_is_refused(fields: dict[str, Any], style: ModelFormat, param: str) -> None:
    with pytest.raises(BadRequest) as caught:
        grammar_of(request(**fields), style)
    assert caught.value.param == param
