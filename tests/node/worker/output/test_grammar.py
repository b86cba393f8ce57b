"""Outputs that must match: by a random model, which would never match by itself.

`python -m tests.soak grammar` does the same with a thousand schemas.
"""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from mesh.errors import BadRequest
from mesh.messages.inference import Delta, Done, Fail, Grammar, Performance, Usage
from node.worker.output import grammar as grammar_module
from node.worker.output import rehearsal as rehearsal_module
from node.worker.output.grammar import Grammars
from tests.soak.grammar import Findings, _judge, constrained

SCHEMAS = 60

MESSAGES = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def driver(make_driver: Any) -> Any:
    return make_driver("llama", queue=256)


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> Grammars:
    return Grammars(tokenizer, vocabulary=512, end_tokens=[tokenizer.eos_token_id])


def schema_grammar(schema: dict[str, Any]) -> Grammar:
    return Grammar("json_schema", json.dumps(schema))


def test_what_stops_fits_its_schema_and_what_is_cut_begins_one(driver: Any, tokenizer: Any, grammars: Grammars) -> None:
    found = constrained(driver.engine, tokenizer, grammars, SCHEMAS, seed=11)
    assert found.faults == []
    assert found.ends.total() == SCHEMAS
    assert min(found.ends["stop"], found.ends["length"]) >= SCHEMAS / 10


@pytest.mark.parametrize(
    ("end", "text", "wrong"),
    [
        ("stop", '{"a": 5}', ""),
        ("stop", '{"a": "5"}', "out of range"),
        ("stop", '{"a": 5', "delimiter"),
        ("length", '{"a": ', ""),
        ("length", '{"b', "begins nothing"),
    ],
)
def test_the_judge_sees_what_is_wrong(tokenizer: Any, grammars: Grammars, end: Any, text: str, wrong: str) -> None:
    schema = {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}},
        "required": ["a"],
        "additionalProperties": False,
    }
    found = Findings()
    _judge(found, tokenizer, grammars, schema, [Delta(0, [], text), Done(end, Usage(1, 1), Performance(0, 0, 0, 0, 1))])
    assert bool(found.faults) == bool(wrong)
    assert wrong in "".join(found.faults)


@pytest.mark.parametrize(
    ("grammar", "expected"),
    [
        (Grammar("regex", r"[a-c]{3}/\d{2}"), r"[a-c]{3}/\d{2}"),
        (Grammar("choice", json.dumps(["yes", 'no "maybe"', "grün\n"])), r"yes|no \"maybe\"|grün\n"),
        (Grammar("lark", 'start: "<" inner ">"\ninner: /[xy]{1,4}/'), "<[xy]{1,4}>"),
    ],
)
def test_other_forms(driver: Any, grammar: Grammar, expected: str) -> None:
    for seed in range(4):
        outcome = driver.answer(messages=MESSAGES, grammar=grammar, temperature=1.0, seed=seed, max_tokens=60)
        assert outcome.last.finish_reason == "stop"
        assert re.fullmatch(expected, outcome.text)


def test_a_json_object_is_one(driver: Any) -> None:
    outcome = driver.answer(messages=MESSAGES, grammar=Grammar("json_object"), temperature=1.0, seed=1, max_tokens=200)
    assert outcome.text.startswith("{")
    if outcome.last.finish_reason == "stop":
        assert isinstance(json.loads(outcome.text), dict)


@pytest.mark.parametrize(
    "grammar",
    [
        schema_grammar({"type": "strin"}),
        schema_grammar({"type": "integer", "minimum": 5, "maximum": 2}),
        schema_grammar({"type": "object", "properties": {"a": False}, "required": ["a"]}),
        schema_grammar({"$ref": "http://127.0.0.1:9/x"}),
        schema_grammar({"not": {"type": "string"}}),
        Grammar("regex", "[a-"),
        Grammar("regex", "(?=x)y"),
        Grammar("lark", "start: nothing"),
        Grammar("lark", "x" * (grammar_module.LONGEST_GRAMMAR + 1)),
    ],
)
def test_what_cannot_be_followed_is_the_clients_error(driver: Any, grammar: Grammar) -> None:
    outcome = driver.answer(messages=MESSAGES, grammar=grammar)
    assert isinstance(outcome.last, Fail)
    assert (outcome.last.status, outcome.last.param) == (400, "response_format")
    assert outcome.last.code in ("invalid_grammar", "grammar_too_large")


def test_few_grammars_are_kept(grammars: Grammars) -> None:
    texts = [json.dumps({"grammars": [{"lark_grammar": f'start: "{number}"'}]}) for number in range(grammar_module.MOST_KEPT + 3)]
    for text in texts:
        grammars.constraint(text, param="p")
    assert [grammars.knows(text) for text in texts[:4]] == [False, False, False, True]
    assert all(grammars.knows(text) for text in texts[-5:])


def test_a_model_without_an_end_token_is_told_apart(tokenizer: Any) -> None:
    with pytest.raises(BadRequest, match="end token"):
        Grammars(tokenizer, vocabulary=512, end_tokens=[]).constraint("x", param="response_format")


def test_one_that_would_end_the_process_is_the_clients_error(driver: Any) -> None:
    chain = Grammar("lark", chained(3000))
    for _ in range(2):
        outcome = driver.answer(messages=MESSAGES, grammar=chain)
        assert isinstance(outcome.last, Fail)
        assert (outcome.last.status, outcome.last.code, outcome.last.param) == (400, "grammar_too_complex", "response_format")
        assert "overflows the compiler; simplify it" in outcome.last.message
    outcome = driver.answer(messages=MESSAGES, grammar=Grammar("regex", "[x-z]{2}"), temperature=1.0, seed=1)
    assert outcome.last.finish_reason == "stop"


def test_what_takes_too_long_is_cut_off_and_remembered(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    grammars = Grammars(tokenizer, vocabulary=512, end_tokens=[tokenizer.eos_token_id], longest=0.05)
    grammars.constraint(lark('start: "a"'), param="p")
    # Some 0.2 s of work, before it is found to be too much.
    patterns = {f"p{index}": {"allOf": [{"pattern": f".*a.b{index}.*"}, {"pattern": ".*b.*"}]} for index in range(600)}
    heavy = lark(f"start: %json {json.dumps({'type': 'object', 'properties': patterns})}")
    with pytest.raises(BadRequest, match=r"response_format takes more than 0\.05 s to compile; simplify it"):
        grammars.constraint(heavy, param="response_format")
    assert grammars.knows(heavy)
    monkeypatch.setattr(rehearsal_module.subprocess, "Popen", None)
    with pytest.raises(BadRequest, match=r"tools takes more than 0\.05 s"):
        grammars.constraint(heavy, param="tools")


def test_few_refusals_are_kept(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammar_module, "MOST_KEPT", 3)
    monkeypatch.setattr(rehearsal_module.Rehearsal, "fails", lambda self, text: "is too much")
    texts = [lark(f'start: "refused {number}"') for number in range(5)]
    for text in texts:
        with pytest.raises(BadRequest, match="p is too much"):
            grammars.constraint(text, param="p")
    assert [grammars.knows(text) for text in texts] == [False, False, True, True, True]


def lark(text: str) -> str:
    return json.dumps({"grammars": [{"lark_grammar": text}]})


def chained(length: int) -> str:
    """Rules that name each other in a row: as deep as it is long."""
    rules = [f'r{index}: r{index + 1} r{index + 1} | "a"' for index in range(length)]
    return "\n".join(["start: r0", *rules, f'r{length}: "z"'])
