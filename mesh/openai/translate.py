"""Between OpenAI's shapes and ours. Pure: no I/O, no clock, no chance.

1. A stream is: a chunk with the role, chunks with text, one with the finish reason and `performance`, one with the usage when it
   was asked for, then `[DONE]`.
2. Chunks differ in their text alone, so they are put together from bytes that are made once.
3. Whatever text a model makes, what goes out is valid JSON on one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

from mesh.messages.inference import InferenceRequest
from mesh.openai.parse import one_prompt
from mesh.openai.types import CHAT_DEFAULTS, COMPLETION_DEFAULTS, ChatMessage, ChatRequest, CompletionRequest, Defaults

if TYPE_CHECKING:
    from mesh.messages.inference import Done, Task
    from mesh.messages.record import ModelEntry

DONE_EVENT = b"data: [DONE]\n\n"
MAX_AFFINITY = 256
"""Characters of it that count."""
_SEED_MASK = 2**63 - 1
_MARK = "infermesh-text"
_LINE_BREAKS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
"""Line ends of Unicode, as JSON escapes: some SSE readers split there."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What the gateway adds to a request. `created` in Unix seconds; `seed` counts when the client gave none."""

    request_id: str
    created: int
    seed: int


def chat_inference(body: ChatRequest, identity: Identity) -> InferenceRequest:
    """The request of ours."""
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    messages = [_message(message) for message in body.messages]
    return _inference(body, identity, CHAT_DEFAULTS, task="chat", messages=messages, max_tokens=limit)


def completion_inference(body: CompletionRequest, identity: Identity) -> InferenceRequest:
    """The request of ours."""
    prompt = one_prompt(body.prompt)
    return _inference(body, identity, COMPLETION_DEFAULTS, task="completion", prompt=prompt, max_tokens=body.max_tokens)


def _inference(
    body: ChatRequest | CompletionRequest,
    identity: Identity,
    defaults: Defaults,
    *,
    task: Task,
    max_tokens: int | None,
    messages: list[dict[str, Any]] | None = None,
    prompt: str | list[int] | None = None,
) -> InferenceRequest:
    stop = [body.stop] if isinstance(body.stop, str) else body.stop
    return InferenceRequest(
        request_id=identity.request_id,
        created=identity.created,
        model=body.model,
        task=task,
        messages=messages,
        prompt=prompt,
        max_tokens=_or(max_tokens, defaults.max_tokens),
        temperature=_or(body.temperature, defaults.temperature),
        top_p=_or(body.top_p, defaults.top_p),
        top_k=max(0, _or(body.top_k, defaults.top_k)),
        seed=_or(body.seed, identity.seed) & _SEED_MASK,
        stop=stop or [],
        stream=bool(body.stream),
        affinity=(body.prompt_cache_key or body.user or "")[:MAX_AFFINITY],
    )


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def _message(message: ChatMessage) -> dict[str, Any]:
    """OpenAI's shape with the text in one piece. `developer` is `system`: templates know no other name for it."""
    content = message.content
    if isinstance(content, list):
        content = "\n".join(part.text or "" for part in content)
    fields: dict[str, Any] = msgspec.to_builtins(message)
    role = "system" if message.role == "developer" else message.role
    return {**fields, "role": role, "content": content}


def json_text(text: str) -> bytes:
    """The text as JSON on one line. Halves of surrogate pairs are joined, lone ones replaced."""
    try:
        encoded = msgspec.json.encode(text)
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(valid_text(text))
    if not text.isascii():
        for line_break, escape in _LINE_BREAKS:
            encoded = encoded.replace(line_break, escape)
    return encoded


def valid_text(text: str) -> str:
    """The text with lone surrogates replaced; unchanged when there are none."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Wording:
    """How one request is answered, in either shape: `chat` or `completion`."""

    def __init__(self, task: Literal["chat", "completion"], request: InferenceRequest, *, include_usage: bool = False) -> None:
        self._chat = task == "chat"
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{request.request_id.replace('-', '')}"
        self._request = request
        self._include_usage = include_usage
        whole = self._event(self._choice(_MARK, None))
        self._prefix, _, self._suffix = whole.rpartition(msgspec.json.encode(_MARK))

    def reply(self, text: str, done: Done) -> dict[str, Any]:
        """The answer in one piece."""
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": done.finish_reason}
        if self._chat:
            choice["message"] = {"role": "assistant", "content": valid_text(text), "refusal": None}
        else:
            choice["text"] = valid_text(text)
        kind = "chat.completion" if self._chat else "text_completion"
        return {**self._base(kind), "choices": [choice], "usage": _usage(done), "performance": done.performance}

    def opening(self) -> bytes:
        """What a stream begins with: the role."""
        if not self._chat:
            return b""
        return self._event({"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None})

    def chunk(self, text: str) -> bytes:
        """One piece of text."""
        return self._prefix + json_text(text) + self._suffix

    def closing(self, done: Done) -> bytes:
        """What a stream ends with."""
        events = [self._event(self._choice(None, done.finish_reason), performance=done.performance)]
        if self._include_usage:
            events.append(self._event(None, usage=_usage(done)))
        return b"".join([*events, DONE_EVENT])

    def _choice(self, text: str | None, finish_reason: str | None) -> dict[str, Any]:
        if self._chat:
            delta = {} if text is None else {"content": text}
            return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {"index": 0, "text": text or "", "logprobs": None, "finish_reason": finish_reason}

    def _event(self, choice: dict[str, Any] | None, **more: Any) -> bytes:
        usage = {"usage": None} if self._include_usage else {}
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        chunk = {**self._base(kind), "choices": [] if choice is None else [choice], **usage, **more}
        return b"data: " + msgspec.json.encode(chunk) + b"\n\n"

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._request.created, "model": self._request.model}


def _usage(done: Done) -> dict[str, int]:
    usage = done.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def model_object(entry: ModelEntry) -> dict[str, Any]:
    """A model as the API lists it."""
    return {"id": entry.id, "object": "model", "created": entry.created, "owned_by": "infermesh"}
