"""What clients send, with the contract's defaults (R49), and what we can honour of it.

1. Types are checked by msgspec, ranges by `check_ranges`, both with the path of the offending field.
2. A parameter that OpenAI knows and we cannot honour is refused unless its value asks for nothing (`NEUTRAL`).
3. A name that nobody knows, or that cannot change the answer, is ignored, and the reply says so.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

MAX_STOPS = 16
MAX_CHOICES = 128
MAX_ALTERNATIVES = 20
MAX_BIASED = 1024
MAX_TOOLS = 128
INT32_MAX = 2**31 - 1

Role = Literal["system", "developer", "user", "assistant", "tool"]


class ContentPart(msgspec.Struct, kw_only=True):
    """One part of a message. Only text can be honoured."""

    type: str
    text: str | None = None


class ChatMessage(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One message of a conversation."""

    role: Role
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class StreamOptions(msgspec.Struct, kw_only=True):
    """How to stream."""

    include_usage: bool | None = None


class JsonSchemaFormat(msgspec.Struct, kw_only=True):
    """The inside of a `json_schema` format."""

    name: str
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """What shape the answer has."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True):
    """vLLM's extension; exactly one of them."""

    json: str | dict[str, Any] | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class Function(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A function that may be called. Its parameters are a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, kw_only=True):
    """A tool; functions are the only kind."""

    type: str
    function: Function | None = None


class FunctionName(msgspec.Struct, kw_only=True):
    """Which function to call."""

    name: str


class NamedTool(msgspec.Struct, kw_only=True):
    """A tool choice that names one function."""

    type: str
    function: FunctionName | None = None


class _Sampling(msgspec.Struct, kw_only=True):
    """What both endpoints share. None means the default, as OpenAI's clients send it."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    n: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    prompt_cache_key: str | None = None


class ChatRequest(_Sampling, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None
    """OpenAI's newer name; it beats `max_tokens`."""
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None


class CompletionRequest(_Sampling, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | bool | None = None
    echo: bool | None = None


class Defaults(msgspec.Struct, frozen=True):
    """What stands for what the client leaves out."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int


CHAT_DEFAULTS = Defaults(max_tokens=512, temperature=0.7, top_p=0.9, top_k=50)
COMPLETION_DEFAULTS = Defaults(max_tokens=16, temperature=1.0, top_p=1.0, top_k=0)

RANGES: dict[str, tuple[float, float, str]] = {
    "max_tokens": (1, INT32_MAX, f"between 1 and {INT32_MAX}"),
    "max_completion_tokens": (1, INT32_MAX, f"between 1 and {INT32_MAX}"),
    "temperature": (0, 2, "between 0 and 2"),
    "top_p": (0, 1, "between 0 and 1"),
    "top_k": (-1, INT32_MAX, f"between 0 and {INT32_MAX} (0 or -1: no limit)"),
    "min_p": (0, 1, "between 0 and 1"),
    "repetition_penalty": (0.01, 100, "between 0.01 and 100 (1: off)"),
    "presence_penalty": (-2, 2, "between -2 and 2"),
    "frequency_penalty": (-2, 2, "between -2 and 2"),
    "n": (1, MAX_CHOICES, f"between 1 and {MAX_CHOICES}"),
    "min_tokens": (0, INT32_MAX, f"between 0 and {INT32_MAX}"),
    "top_logprobs": (0, MAX_ALTERNATIVES, f"between 0 and {MAX_ALTERNATIVES}"),
    "seed": (-(2**63), 2**63 - 1, "an integer of 64 bits"),
}

CHAT_NEUTRAL: dict[str, list[Any]] = {
    "functions": [[]],
    "function_call": ["none", "auto"],
    "modalities": [[], ["text"]],
    "audio": [],
    "prediction": [],
    "web_search_options": [],
    "moderation": [],
}
COMPLETION_NEUTRAL: dict[str, list[Any]] = {
    "best_of": [1],
    "suffix": [""],
}
"""By name, the values (besides null) under which a parameter that we cannot honour asks for nothing."""
