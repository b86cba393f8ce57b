"""What clients send, with the contract's defaults (R49), and what we can honour of it.

1. Types are checked by msgspec, ranges by `check_ranges`, both with the path of the offending field.
2. A parameter that OpenAI knows and we cannot honour is refused unless its value asks for nothing (`NEUTRAL`).
3. A name that nobody knows, or that cannot change the answer, is ignored, and the reply says so.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

MAX_STOPS = 16
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


class StreamOptions(msgspec.Struct, kw_only=True):
    """How to stream."""

    include_usage: bool | None = None


class _Sampling(msgspec.Struct, kw_only=True):
    """What both endpoints share. None means the default, as OpenAI's clients send it."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
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


class CompletionRequest(_Sampling, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]]


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
    "seed": (-(2**63), 2**63 - 1, "an integer of 64 bits"),
}

_SHARED_NEUTRAL: dict[str, list[Any]] = {
    "n": [1],
    "logprobs": [False],
    "logit_bias": [{}],
    "frequency_penalty": [0, 0.0],
    "presence_penalty": [0, 0.0],
}
CHAT_NEUTRAL: dict[str, list[Any]] = {
    **_SHARED_NEUTRAL,
    "top_logprobs": [0],
    "tools": [[]],
    "tool_choice": ["none", "auto"],
    "functions": [[]],
    "function_call": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "modalities": [[], ["text"]],
    "audio": [],
    "prediction": [],
    "web_search_options": [],
    "moderation": [],
}
COMPLETION_NEUTRAL: dict[str, list[Any]] = {
    **_SHARED_NEUTRAL,
    "best_of": [1],
    "echo": [False],
    "suffix": [""],
}
"""By name, the values (besides null) under which a parameter that we cannot honour asks for nothing."""
