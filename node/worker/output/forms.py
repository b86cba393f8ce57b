"""From what a request asks of its output to one grammar in the library's form.

1. JSON may have white space between its parts, `WHITE` in one place at most: without a bound a model can fill its answer with it.
2. A required tool call is the model's own layout of a call, with the tool's schema inside; an optional one beside a JSON form
   makes either valid.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import BadRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.messages.inference import Grammar, InferenceRequest
    from node.worker.output.formats import ModelFormat

WHITE = r"[ \n\r\t]{0,40}"
NOTHING = {"type": "object", "properties": {}, "additionalProperties": False}
"""The parameters of a function that says nothing of any."""
MOST_CALLS = 16
"""Calls in one answer that must consist of calls."""


def asks_for_calls(request: InferenceRequest) -> bool:
    """Tools are offered and may be called."""
    return bool(request.tools) and request.tool_choice != "none"


def param_of_form(request: InferenceRequest) -> str:
    """The field that an impossible form is about."""
    return request.grammar.param if request.grammar is not None and request.tool_choice != "required" else "tools"


def grammar_of(request: InferenceRequest, model: ModelFormat) -> str | None:
    """None when the output is free. Raises BadRequest."""
    if asks_for_calls(request):
        calls = _calls(request, model)
        if request.tool_choice == "required":
            return _lark(f"start: calls\n{calls}")
        if request.grammar is None:
            return None
        if request.grammar.kind not in ("json_object", "json_schema"):
            raise BadRequest("tools cannot be combined with a regex, choice or grammar for the output", param="tools")
        return _lark(f"start: calls | form\nform: %json {_schema(request.grammar)}\n{calls}")
    return None if request.grammar is None else _form(request.grammar)


def _form(grammar: Grammar) -> str:
    match grammar.kind:
        case "json_object" | "json_schema":
            return _lark(f"start: %json {_schema(grammar)}")
        case "regex":
            return msgspec.json.encode({"grammars": [{"lark_grammar": f"start: /{_slashed(grammar.text)}/"}]}).decode()
        case "choice":
            options = msgspec.json.decode(grammar.text, type=list[str])
            return _lark("start: " + " | ".join(json.dumps(option, ensure_ascii=False) for option in options))
        case "lark":
            return _lark(grammar.text)


def _lark(text: str) -> str:
    return msgspec.json.encode({"grammars": [{"lark_grammar": text}]}).decode()


def _slashed(regex: str) -> str:
    """A slash would end the expression; one that is escaped already is left alone."""
    pieces, escaped = [], False
    for letter in regex:
        pieces.append("\\/" if letter == "/" and not escaped else "\\n" if letter == "\n" else letter)
        escaped = letter == "\\" and not escaped
    return "".join(pieces)


def _schema(grammar: Grammar) -> str:
    return _bounded(json.loads(grammar.text) if grammar.kind == "json_schema" else {"type": "object"})


def _bounded(schema: dict[str, Any]) -> str:
    return json.dumps({**schema, "x-guidance": {"whitespace_pattern": WHITE}}, ensure_ascii=False)


def _calls(request: InferenceRequest, model: ModelFormat) -> str:
    tools = [tool["function"] for tool in request.tools]
    chosen = [tool for tool in tools if request.tool_name in (None, tool["name"])]
    if not chosen:
        raise BadRequest(f"tool_choice names {request.tool_name!r}, which is not among the tools", param="tool_choice")
    most = MOST_CALLS if request.parallel_tool_calls else 1
    match model.calls:
        case "hermes":
            start, end, newline = model.literal("<tool_call>"), model.literal("</tool_call>"), "\n"
            body = _tools(chosen, "arguments")
            return f'calls: call {_more("call", newline, most)}\ncall: {start} "\\n" body "\\n" {end}\n{body}'
        case "mistral" if model.named_arguments:
            start, between = model.literal("[TOOL_CALLS]"), model.literal("[ARGS]")
            return f"calls: call{{1,{most}}}\ncall: {start} body\n{_tools(chosen, None, between)}"
        case "mistral":
            start = model.literal("[TOOL_CALLS]")
            return f'calls: {start} "[" body {_more("body", ", ", most)} "]"\n{_tools(chosen, "arguments")}'
        case "llama3":
            return f"calls: body {_more('body', '; ', most)}\n{_tools(chosen, 'parameters')}"
        case None:
            raise BadRequest(
                "this model's chat template shows no way of calling tools that is known here; leave tools out",
                code="unsupported_parameter",
                param="tools",
            )


def _more(rule: str, between: str, most: int) -> str:
    """What may follow the first one, so that there are `most` of them."""
    return f"({json.dumps(between)} {rule}){{0,{most - 1}}}" if most > 1 else ""


def _tools(tools: Sequence[dict[str, Any]], key: str | None, between: str = "") -> str:
    """The rule `body`: one alternative for each tool, so that a schema's references stay inside it."""
    rules = ["body: " + " | ".join(f"tool{index}" for index in range(len(tools)))]
    for index, tool in enumerate(tools):
        name, schema = json.dumps(tool["name"]), _bounded(tool.get("parameters") or NOTHING)
        if key is None:
            rules.append(f"tool{index}: {name} {between} %json {schema}")
        else:
            opening = json.dumps(f'{{"name": {name}, "{key}": ')
            rules.append(f'tool{index}: {opening} arguments{index} "}}"\narguments{index}: %json {schema}')
    return "\n".join(rules)
