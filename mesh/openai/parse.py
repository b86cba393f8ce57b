"""From a request body to a checked request. Every fault is a BadRequest that names the field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from mesh.errors import BadRequest
from mesh.openai.types import (
    CHAT_NEUTRAL,
    COMPLETION_NEUTRAL,
    INT32_MAX,
    MAX_STOPS,
    RANGES,
    ChatMessage,
    ChatRequest,
    CompletionRequest,
    ContentPart,
)

if TYPE_CHECKING:
    from mesh.http.message import Request

T = TypeVar("T", ChatRequest, CompletionRequest)

_PATH = re.compile(r"^(?P<what>.*) - at `\$\.?(?P<path>[^`]*)`$", re.DOTALL)
_MISSING = re.compile(r"missing required field `(\w+)`")
MAX_DEPTH = 32
"""Levels inside one tool call; what travels on and is rendered by a template must not be deeper."""
_INT64 = range(-(2**63), 2**64)
"""The integers that MessagePack can carry."""
_ROLES = "system, developer, user, assistant or tool"


@dataclass(frozen=True, slots=True)
class Parsed(Generic[T]):
    """A request, and the names in it that were ignored."""

    body: T
    ignored: list[str]


def parse_chat(request: Request) -> Parsed[ChatRequest]:
    """The body of a chat request. Raises BadRequest."""
    parsed = _parse(request, ChatRequest, "messages", CHAT_NEUTRAL)
    messages = parsed.body.messages
    if not messages:
        raise BadRequest("messages is empty; it must hold at least one message", param="messages")
    for index, message in enumerate(messages):
        _check_message(message, f"messages[{index}]")
    return parsed


def parse_completion(request: Request) -> Parsed[CompletionRequest]:
    """The body of a completion request. Raises BadRequest."""
    parsed = _parse(request, CompletionRequest, "prompt", COMPLETION_NEUTRAL)
    one_prompt(parsed.body.prompt)
    return parsed


def one_prompt(prompt: str | list[str | int | list[int]]) -> str | list[int]:
    """The prompt as text or token ids. Raises BadRequest for several prompts, or for ids that cannot be ids."""
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1 and not isinstance(prompt[0], int):
        return one_prompt(prompt[0] if isinstance(prompt[0], str) else list(prompt[0]))
    ids = [token for token in prompt if isinstance(token, int)]
    if not prompt or len(ids) != len(prompt):
        raise BadRequest("prompt must be one text or one list of token ids; send one request for each prompt", param="prompt")
    if not all(0 <= token <= INT32_MAX for token in ids):
        raise BadRequest(f"prompt holds a token id that is not between 0 and {INT32_MAX}", param="prompt")
    return ids


def _parse(request: Request, kind: type[T], required: str, neutral: dict[str, list[Any]]) -> Parsed[T]:
    fields = _fields(request, required)
    for name in neutral.keys() & fields.keys():
        _check_neutral(name, fields[name], neutral[name])
    body = _decode(request.body, kind)
    _check_ranges(body)
    _check_stop(body.stop)
    if not body.model:
        raise BadRequest("model is empty; GET /v1/models lists what there is", param="model")
    if body.stream_options is not None and not body.stream:
        raise BadRequest("stream_options is only allowed with stream: true", param="stream_options")
    return Parsed(body, [name for name in fields if name not in kind.__struct_fields__ and name not in neutral])


def _fields(request: Request, required: str) -> dict[str, msgspec.Raw]:
    """The top level of the body, still encoded."""
    if request.headers.get("content-type", "").startswith("multipart/"):
        raise BadRequest("send the body as application/json, not as a form", status=415, code="unsupported_media_type")
    if not request.body.strip():
        raise BadRequest(f"the body is empty; send a JSON object with model and {required}")
    return _decode(request.body, dict[str, msgspec.Raw])


D = TypeVar("D")


def _decode(data: bytes, kind: type[D]) -> D:
    """Decode JSON. Raises BadRequest with the place of the fault: a field's path, or a byte."""
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise _wrong_shape(str(error)) from error
    except msgspec.DecodeError as error:
        place = "" if "(byte" in str(error) else f" (byte {len(data)})"
        raise BadRequest(f"the body is not JSON: {error}{place}", code="invalid_json") from error
    except UnicodeDecodeError as error:
        raise BadRequest(f"the body is not UTF-8: {error.reason} in {error.object[:40]!r}", code="invalid_json") from error
    except RecursionError as error:
        raise BadRequest("the body is nested too deeply", code="invalid_json") from error


def _wrong_shape(message: str) -> BadRequest:
    """msgspec's complaint, with its path as `param`."""
    found = _PATH.match(message)
    what, path = (found["what"], found["path"]) if found else (message, "")
    missing = _MISSING.search(what)
    if missing:
        path = f"{path}.{missing[1]}".lstrip(".")
        return BadRequest(f"{path} is required", param=path)
    if path.endswith(".role"):
        what = f"must be {_ROLES}"
    elif not path:
        return BadRequest(f"the body must be a JSON object: {what}")
    return BadRequest(f"{path}: {what[0].lower()}{what[1:]}", param=path)


def _check_neutral(name: str, raw: msgspec.Raw, neutral: list[Any]) -> None:
    value = _decode(bytes(raw), object)
    if value is None or any(type(value) is type(other) and value == other for other in neutral):
        return
    if name == "n":
        raise BadRequest("n must be 1: one answer per request is what can be had here", param="n", code="unsupported_parameter")
    raise BadRequest(f"{name} is not supported here; leave it out", param=name, code="unsupported_parameter")


def _check_ranges(body: ChatRequest | CompletionRequest) -> None:
    for name, (low, high, words) in RANGES.items():
        value = getattr(body, name, None)
        if value is not None and not low <= value <= high:
            raise BadRequest(f"{name} is {value:.12g}; it must be {words}", param=name, code="out_of_range")


def _check_stop(stop: str | list[str] | None) -> None:
    if stop is None:
        return
    stops = [stop] if isinstance(stop, str) else stop
    if len(stops) > MAX_STOPS or not all(stops):
        raise BadRequest(f"stop must be up to {MAX_STOPS} texts, none of them empty", param="stop", code="out_of_range")


def _check_message(message: ChatMessage, path: str) -> None:
    content = message.content
    if content is None and not (message.role == "assistant" and message.tool_calls):
        raise BadRequest(f"{path}.content is required", param=f"{path}.content")
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, f"{path}.content[{index}]")
    for index, call in enumerate(message.tool_calls or []):
        _check_free_form(call, f"{path}.tool_calls[{index}]")


def _check_free_form(value: object, path: str, depth: int = 0) -> None:
    """What has no type of ours must still be able to travel."""
    if depth > MAX_DEPTH:
        raise BadRequest(f"{path} is nested deeper than {MAX_DEPTH} levels", param=path)
    if isinstance(value, int) and value not in _INT64:
        raise BadRequest(f"{path} holds an integer of more than 64 bits; send it as text", param=path, code="out_of_range")
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for each in inner:
        _check_free_form(each, path, depth + 1)


def _check_part(part: ContentPart, path: str) -> None:
    if part.type != "text":
        raise BadRequest(
            f"{path}.type is {part.type[:40]!r}; only text parts are supported here",
            param=f"{path}.type",
            code="unsupported_content",
        )
    if part.text is None:
        raise BadRequest(f"{path}.text is required", param=f"{path}.text")
