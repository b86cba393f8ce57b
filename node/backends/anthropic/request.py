"""A request of ours in the shape of Anthropic's Messages API. Pure.

1. System messages go beside the conversation; messages of one side in a row become one.
2. What the API cannot do is refused by name; what a client left to us is left to the API.
3. An answer that was begun elsewhere is the last message, without the white space at its end, which the API refuses there.
4. A seed is not passed on, for the API has none: the same request may be answered in other words.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mesh.beyond_text import refuse
from mesh.errors import BadRequest
from mesh.openai.remote.continuing import behind
from mesh.openai.types import CHAT_DEFAULTS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mesh.messages.inference import InferenceRequest

_WHO = "an Anthropic model"
_NEUTRAL = {
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "logit_bias": {},
    "min_tokens": 0,
    "ignore_eos": False,
}


def body_of(request: InferenceRequest) -> dict[str, Any]:
    """The body. Raises BadRequest for what cannot be had."""
    _check(request)
    request = behind(_without_end(request))
    messages = request.messages or []
    body: dict[str, Any] = {
        "model": request.model,
        "max_tokens": request.max_tokens or CHAT_DEFAULTS.max_tokens,
        "messages": _conversation(message for message in messages if message["role"] != "system"),
        "stream": True,
    }
    if system := "\n\n".join(str(message.get("content") or "") for message in messages if message["role"] == "system"):
        body["system"] = system
    if request.stop:
        body["stop_sequences"] = request.stop
    return body | _sampling(request) | _tools(request)


def _without_end(request: InferenceRequest) -> InferenceRequest:
    if request.said is None:
        return request
    said = msgspec.structs.replace(request.said, text=request.said.text.rstrip())
    return msgspec.structs.replace(request, said=said)


def _check(request: InferenceRequest) -> None:
    refuse(request, _WHO, ("n", "logprobs", "response_format", "echo"))
    for name, nothing in _NEUTRAL.items():
        if getattr(request, name) != nothing:
            raise BadRequest(f"{_WHO} cannot honour {name}; leave it out", code="unsupported_parameter", param=name)


def _sampling(request: InferenceRequest) -> dict[str, Any]:
    """What differs from what stands for nothing said: newer models refuse temperature and top_p at once."""
    fields: dict[str, Any] = {}
    if request.temperature != CHAT_DEFAULTS.temperature:
        fields["temperature"] = min(1.0, request.temperature)
    if request.top_p != CHAT_DEFAULTS.top_p:
        fields["top_p"] = request.top_p
    if request.top_k not in (0, CHAT_DEFAULTS.top_k):
        fields["top_k"] = request.top_k
    return fields


def _tools(request: InferenceRequest) -> dict[str, Any]:
    if not request.tools:
        return {}
    choices = {"auto": "auto", "none": "none", "required": "any"}
    choice: dict[str, Any] = {"type": choices[request.tool_choice]}
    if request.tool_name is not None:
        choice = {"type": "tool", "name": request.tool_name}
    if not request.parallel_tool_calls and choice["type"] != "none":
        choice["disable_parallel_tool_use"] = True
    return {"tools": [_tool(tool["function"]) for tool in request.tools], "tool_choice": choice}


def _tool(function: dict[str, Any]) -> dict[str, Any]:
    about = {"description": function["description"]} if function.get("description") else {}
    return {"name": function["name"], **about, "input_schema": function.get("parameters") or {"type": "object"}}


def _conversation(messages: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        blocks = _blocks(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    return turns


def _blocks(message: dict[str, Any]) -> list[dict[str, Any]]:
    text = str(message.get("content") or "")
    if message["role"] == "tool":
        return [{"type": "tool_result", "tool_use_id": message.get("tool_call_id") or "", "content": text}]
    said = [{"type": "text", "text": text}] if text else []
    return said + [_call(call) for call in message.get("tool_calls") or []]


def _call(call: dict[str, Any]) -> dict[str, Any]:
    function = call.get("function") or {}
    try:
        arguments = msgspec.json.decode(function.get("arguments") or "{}")
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadRequest("the arguments of a tool call are not JSON", param="messages") from error
    return {"type": "tool_use", "id": call.get("id") or "", "name": function.get("name") or "", "input": arguments}
