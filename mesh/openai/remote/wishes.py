"""What a request asks for beyond the common parameters, in OpenAI's shape."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mesh.beyond_text import refuse
from mesh.errors import BadRequest

if TYPE_CHECKING:
    from mesh.messages.inference import Grammar, InferenceRequest


def check_wishes(request: InferenceRequest) -> None:
    """Raises BadRequest for what cannot be passed on, or whose answer cannot be passed back."""
    refuse(request, "an OpenAI-compatible server behind the mesh", ("n", "echo"))
    if request.grammar is not None and request.grammar.kind not in ("json_object", "json_schema"):
        raise BadRequest(
            "an OpenAI-compatible server behind the mesh can be asked for JSON only, not for a regex, choice or grammar",
            code="unsupported_parameter",
            param="structured_outputs",
        )


def wishes_of(request: InferenceRequest) -> dict[str, Any]:
    """The fields to add to the body."""
    fields: dict[str, Any] = {}
    for name in ("presence_penalty", "frequency_penalty"):
        if value := getattr(request, name):
            fields[name] = value
    if request.logit_bias:
        fields["logit_bias"] = {str(token): bias for token, bias in request.logit_bias.items()}
    if request.tools:
        fields |= {"tools": request.tools, "tool_choice": _tool_choice(request)}
        fields |= {} if request.parallel_tool_calls else {"parallel_tool_calls": False}
    if request.grammar is not None:
        fields["response_format"] = _response_format(request.grammar)
    if request.top_k:
        fields["top_k"] = request.top_k
    if request.logprobs is not None:
        fields |= _probabilities(request, request.logprobs)
    return fields | _extensions(request)


def _extensions(request: InferenceRequest) -> dict[str, Any]:
    neutral = {"min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0, "ignore_eos": False}
    return {name: getattr(request, name) for name, nothing in neutral.items() if getattr(request, name) != nothing}


def _probabilities(request: InferenceRequest, alternatives: int) -> dict[str, Any]:
    if request.task == "completion":
        return {"logprobs": alternatives}
    return {"logprobs": True} | ({"top_logprobs": alternatives} if alternatives else {})


def _tool_choice(request: InferenceRequest) -> str | dict[str, Any]:
    if request.tool_name is None:
        return request.tool_choice
    return {"type": "function", "function": {"name": request.tool_name}}


def _response_format(grammar: Grammar) -> dict[str, Any]:
    if grammar.kind == "json_object":
        return {"type": "json_object"}
    schema = msgspec.json.decode(grammar.text)
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema, "strict": True}}
