"""What form a client wants the output to have, whichever of the names for it was used."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import BadRequest
from mesh.messages.inference import Grammar
from mesh.openai.free_form import check_free_form

if TYPE_CHECKING:
    from mesh.openai.types import ChatRequest, CompletionRequest

MAX_OPTIONS = 1024
"""Texts to choose from."""


def check_form(body: ChatRequest | CompletionRequest) -> None:
    """Raises BadRequest."""
    grammar_of(body)


def grammar_of(body: ChatRequest | CompletionRequest) -> Grammar | None:
    """None when the output is free. Raises BadRequest, also for two forms at once."""
    forms = {**_response_format(body), **_structured(body), **_guided(body)}
    if len(forms) > 1:
        names = " and ".join(forms)
        raise BadRequest(f"{names} both say what form the output has; leave one out", param=list(forms)[1])
    for name, grammar in forms.items():
        return msgspec.structs.replace(grammar, param=name)
    return None


def _response_format(body: ChatRequest | CompletionRequest) -> dict[str, Grammar]:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return {}
    if wanted.type == "json_object":
        return {"response_format": Grammar("json_object")}
    path = "response_format.json_schema"
    if wanted.json_schema is None:
        raise BadRequest(f"{path} is required with the type json_schema", param=path)
    if wanted.json_schema.schema is None:
        raise BadRequest(f"{path}.schema is required", param=f"{path}.schema")
    return {"response_format": _schema(wanted.json_schema.schema, f"{path}.schema")}


def _structured(body: ChatRequest | CompletionRequest) -> dict[str, Grammar]:
    given = body.structured_outputs
    if given is None:
        return {}
    forms = _forms("structured_outputs.", given.json, given.regex, given.choice, given.grammar)
    if given.json_object:
        forms["structured_outputs.json_object"] = Grammar("json_object")
    if not forms:
        raise BadRequest("structured_outputs needs json, regex, choice, grammar or json_object", param="structured_outputs")
    return forms


def _guided(body: ChatRequest | CompletionRequest) -> dict[str, Grammar]:
    return _forms("guided_", body.guided_json, body.guided_regex, body.guided_choice, body.guided_grammar)


def _forms(
    prefix: str, schema: str | dict[str, Any] | None, regex: str | None, choice: list[str] | None, lark: str | None
) -> dict[str, Grammar]:
    forms: dict[str, Grammar] = {}
    if schema is not None:
        forms[f"{prefix}json"] = _schema(_object(schema, f"{prefix}json"), f"{prefix}json")
    if regex is not None:
        forms[f"{prefix}regex"] = Grammar("regex", regex)
    if choice is not None:
        if not 0 < len(choice) <= MAX_OPTIONS or not all(choice):
            raise BadRequest(f"{prefix}choice must hold 1 to {MAX_OPTIONS} texts, none of them empty", param=f"{prefix}choice")
        forms[f"{prefix}choice"] = Grammar("choice", msgspec.json.encode(choice).decode())
    if lark is not None:
        forms[f"{prefix}grammar"] = Grammar("lark", lark)
    return forms


def _object(schema: str | dict[str, Any], path: str) -> dict[str, Any]:
    if isinstance(schema, dict):
        return schema
    try:
        return msgspec.json.decode(schema, type=dict[str, Any])
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest(f"{path} is not a JSON object: {error}", param=path) from error


def _schema(schema: dict[str, Any], path: str) -> Grammar:
    check_free_form(schema, path)
    return Grammar("json_schema", json.dumps(schema, ensure_ascii=False))
