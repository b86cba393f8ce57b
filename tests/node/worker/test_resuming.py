"""All that a stream carries, when another engine goes on with it: logprobs, grammars, tool calls, stop strings."""

from __future__ import annotations

import json
import shutil
from typing import Any

import msgspec
import pytest

from mesh.messages.inference import Delta, Done, Grammar
from node.models import demo_model_path
from node.worker.engine import Limits
from node.worker.loader import Options, load
from tests.tiny import TOOL_TEMPLATE

ASKED = [{"role": "user", "content": "What is the weather like in Oslo?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1, 22]}, "b": {"type": "boolean"}}, "required": ["a", "b"]}
CASES: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": 2, "max_tokens": 16},
    "grammar": {"grammar": Grammar("json_schema", json.dumps(SCHEMA)), "max_tokens": 40},
    "tool call": {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 40},
    "stop string": {"stop": [" the", "ing"], "max_tokens": 40},
}


@pytest.fixture(scope="module")
def engines(drive: Any, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """Two nodes' engines with one model: the demo's, taught a form for calls."""
    path = tmp_path_factory.mktemp("demo") / "model"
    shutil.copytree(demo_model_path(), path)
    (path / "chat_template.jinja").write_text(TOOL_TEMPLATE)
    options = Options(path=path, device="cpu", dtype="float32", slots=4, limits=Limits(stretch=0.0))
    return [drive(load(options, lambda _: None)[0]) for _ in range(2)]


def answer(driver: Any, **fields: Any) -> Any:
    """The ids of calls come from the request's id, so all are the same request."""
    driver._next = 0
    return driver.answer(**fields)


def without_logprobs(delta: Delta) -> Delta:
    return msgspec.structs.replace(delta, logprobs=[])


def told(deltas: list[Delta]) -> list[tuple[bytes, float]]:
    return [(each.token, each.logprob) for delta in deltas for one in delta.logprobs for each in (one, *one.top)]


@pytest.mark.parametrize("case", CASES)
def test_another_engine_says_the_rest_as_the_first_would_have(engines: list[Any], case: str) -> None:
    fields = {"messages": ASKED, "temperature": 0.8, "seed": 21, "created": 1_700_000_000, **CASES[case]}
    first, other = engines
    whole = answer(first, **fields)
    deltas = [event for event in whole.events if isinstance(event, Delta)]
    assert len(deltas) > 3
    for cut in sorted({1, len(deltas) // 3, len(deltas) // 2, len(deltas) - 1}):
        resumed = answer(other, **fields, prior=[whole.ids[:cut]])
        rest = [event for event in resumed.events if isinstance(event, Delta)]
        assert [without_logprobs(delta) for delta in rest] == [without_logprobs(delta) for delta in deltas[cut:]]
        expected = told(deltas[cut:])
        assert [token for token, _ in told(rest)] == [token for token, _ in expected]
        assert [score for _, score in told(rest)] == pytest.approx([score for _, score in expected], abs=1e-3)
        assert isinstance(resumed.last, Done)
        assert (resumed.last.finish_reason, resumed.last.usage) == (whole.last.finish_reason, whole.last.usage)


def test_the_cases_are_what_they_say(engines: list[Any]) -> None:
    """A call and an object are being made where the cuts lie."""
    fields = {"messages": ASKED, "temperature": 0.8, "seed": 21, "created": 1_700_000_000}
    called = answer(engines[0], **fields, **CASES["tool call"])
    arguments = "".join(call.arguments for event in called.events if isinstance(event, Delta) for call in event.tool_calls)
    assert arguments.startswith('{"city":')
    assert answer(engines[0], **fields, **CASES["grammar"]).text.startswith("{")
    assert answer(engines[0], **fields, **CASES["stop string"]).last.finish_reason == "stop"
