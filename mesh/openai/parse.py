"""From a request body to a checked request. Every fault is a BadRequest that names the field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import msgspec

from mesh.errors import BadRequest
from mesh.openai.forms import check_form
from mesh.openai.free_form import check_free_form
from mesh.openai.tools import check_tools
from mesh.openai.types import (
    CHAT_NEUTRAL,
    COMPLETION_NEUTRAL,
    INT32_MAX,
    MAX_ALTERNATIVES,
    MAX_BIASED,
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
_LONGEST_ID = 10
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
    check_tools(parsed.body)
    if parsed.body.top_logprobs and not parsed.body.logprobs:
        raise BadRequest("top_logprobs is only allowed with logprobs: true", param="top_logprobs")
    return parsed


def parse_completion(request: Request) -> Parsed[CompletionRequest]:
    """The body of a completion request. Raises BadRequest."""
    parsed = _parse(request, CompletionRequest, "prompt", COMPLETION_NEUTRAL)
    one_prompt(parsed.body.prompt)
    _check_completion_logprobs(parsed.body)
    return parsed


def _check_completion_logprobs(body: CompletionRequest) -> None:
    wanted = body.logprobs
    if wanted is None or wanted is False:
        return
    if not 0 <= wanted <= MAX_ALTERNATIVES:
        raise BadRequest(
            f"logprobs is {wanted}; it must be between 0 and {MAX_ALTERNATIVES}", param="logprobs", code="out_of_range"
        )
    if body.echo:
        raise BadRequest(
            "the prompt's own logprobs cannot be had; leave echo or logprobs out", param="echo", code="unsupported_parameter"
        )


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
    biases(body)
    check_form(body)
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
S = TypeVar("S", bound=msgspec.Struct)


def parse_body(request: Request, kind: type[S], required: str) -> tuple[S, list[str]]:
    """The body of a request of another kind, and the names in it that were ignored. Raises BadRequest."""
    fields = _fields(request, required)
    return _decode(request.body, kind), [name for name in fields if name not in kind.__struct_fields__]


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


def biases(body: ChatRequest | CompletionRequest) -> dict[int, float]:
    """`logit_bias` by token id. Raises BadRequest."""
    given = body.logit_bias or {}
    if len(given) > MAX_BIASED:
        raise BadRequest(f"logit_bias has {len(given)} tokens; {MAX_BIASED} are allowed", param="logit_bias", code="out_of_range")
    found: dict[int, float] = {}
    for token, bias in given.items():
        if not (token.isdecimal() and token.isascii() and len(token) <= _LONGEST_ID and int(token) <= INT32_MAX):
            raise BadRequest(f"logit_bias: {token[:40]!r} is not a token id", param="logit_bias")
        if not -100 <= bias <= 100:
            raise BadRequest(
                f"logit_bias of {token} is {bias:.12g}; it must be between -100 and 100", param="logit_bias", code="out_of_range"
            )
        found[int(token)] = bias
    return found


def _check_message(message: ChatMessage, path: str) -> None:
    content = message.content
    if content is None and not (message.role == "assistant" and message.tool_calls):
        raise BadRequest(f"{path}.content is required", param=f"{path}.content")
    if isinstance(content, list):
        for index, part in enumerate(content):
            _check_part(part, f"{path}.content[{index}]")
    for index, call in enumerate(message.tool_calls or []):
        check_free_form(call, f"{path}.tool_calls[{index}]")


def _check_part(part: ContentPart, path: str) -> None:
    if part.type != "text":
        raise BadRequest(
            f"{path}.type is {part.type[:40]!r}; only text parts are supported here",
            param=f"{path}.type",
            code="unsupported_content",
        )
    if part.text is None:
        raise BadRequest(f"{path}.text is required", param=f"{path}.text")
