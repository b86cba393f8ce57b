"""How answers are written in OpenAI's shapes. Pure: no I/O, no clock, no chance.

1. A stream is: for each choice a chunk with the role, chunks with output, for each choice one with the finish reason, the last of
   them with `performance`, one with the usage when it was asked for, then `[DONE]`.
2. Chunks of plain text differ in their text alone, so they are put together from bytes that are made once.
3. Whatever text a model makes, what goes out is valid JSON on one line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgspec

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.messages.inference import Alternative, Delta, Done, FinishReason, InferenceRequest, TokenLogprob, ToolCallDelta
    from mesh.openai.collected import CollectedChoice

DONE_EVENT = b"data: [DONE]\n\n"
_MARK = "infermesh-text"
_LINE_BREAKS = ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"))
"""Line ends of Unicode, as JSON escapes: some SSE readers split there."""


def json_text(text: str) -> bytes:
    """The text as JSON on one line. Halves of surrogate pairs are joined, lone ones replaced."""
    try:
        encoded = msgspec.json.encode(text)
    except UnicodeEncodeError:
        encoded = msgspec.json.encode(valid_text(text))
    return encoded if text.isascii() else _on_one_line(encoded)


def _on_one_line(encoded: bytes) -> bytes:
    for line_break, escape in _LINE_BREAKS:
        encoded = encoded.replace(line_break, escape)
    return encoded


def valid_text(text: str) -> str:
    """The text with lone surrogates replaced; unchanged when there are none."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


class Wording:
    """How one request is answered, in either shape: `chat` or `completion`. For a stream it remembers what was written."""

    def __init__(self, task: Literal["chat", "completion"], request: InferenceRequest, *, include_usage: bool = False) -> None:
        self._chat = task == "chat"
        self._id = f"{'chatcmpl' if self._chat else 'cmpl'}-{request.request_id.replace('-', '')}"
        self._request = request
        self._include_usage = include_usage
        self._plain = [self._around(index) for index in range(request.n)]
        self._open: dict[int, str | None] = dict.fromkeys(range(request.n))
        self._written = [0] * request.n

    def reply(self, choices: Sequence[CollectedChoice], done: Done) -> dict[str, Any]:
        """The answer in one piece."""
        kind = "chat.completion" if self._chat else "text_completion"
        written = [self._whole(index, choice, done) for index, choice in enumerate(choices)]
        return {**self._base(kind), "choices": written, "usage": _usage(done), "performance": done.performance.rounded()}

    def _whole(self, index: int, choice: CollectedChoice, done: Done) -> dict[str, Any]:
        text = valid_text(choice.text)
        reason = choice.finish_reason or done.finish_reason
        if not self._chat:
            logprobs = _completion_logprobs(choice.logprobs, 0) if self._request.logprobs is not None else None
            return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if choice.reasoning:
            message["reasoning_content"] = valid_text(choice.reasoning)
        if calls := choice.tool_calls:
            message["tool_calls"] = [_call(call.id, call.name, call.arguments) for call in calls]
            message["content"] = text or None
        logprobs = _chat_logprobs(choice.logprobs) if self._request.logprobs is not None else None
        return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": reason}

    def opening(self) -> bytes:
        """What a stream begins with: the role of each choice."""
        if not self._chat:
            return b""
        return b"".join(self._event(self._choice(index, {"role": "assistant", "content": ""})) for index in self._open)

    def go_on(self, characters: Sequence[int], ended: Sequence[tuple[int, FinishReason]]) -> None:
        """Somebody else wrote so much of each choice, and how these ended, in their order."""
        self._written[: len(characters)] = characters
        for index, reason in ended:
            if self._open.get(index, reason) is None:
                self._end(index, reason)

    def chunk(self, delta: Delta) -> bytes:
        """What one delta says; nothing when there is nothing to say."""
        index = delta.choice
        if index not in self._open:
            return b""
        events = [self._content(index, delta)]
        if delta.finish_reason:
            events.append(self._end(index, delta.finish_reason))
        return b"".join(events)

    def closing(self, done: Done) -> bytes:
        """What a stream ends with. Choices that have not ended end as `done` says."""
        *others, last = self._open
        events = [self._end(index, self._open[index] or done.finish_reason) for index in others]
        more = {} if done.exact else {"resume": "approximate"}
        performance = done.performance.rounded()
        events.append(self._end(last, self._open[last] or done.finish_reason, performance=performance, **more))
        if self._include_usage:
            events.append(self._event(None, usage=_usage(done)))
        return b"".join([*events, DONE_EVENT])

    def _content(self, index: int, delta: Delta) -> bytes:
        if not (delta.reasoning or delta.tool_calls or delta.logprobs):
            prefix, suffix = self._plain[index]
            self._written[index] += len(delta.text)
            return prefix + json_text(delta.text) + suffix if delta.text else b""
        text = valid_text(delta.text)
        logprobs = self._logprobs(index, delta.logprobs) if delta.logprobs else None
        self._written[index] += len(text)
        if not self._chat:
            return self._event(self._choice(index, text, logprobs=logprobs))
        said: dict[str, Any] = {"content": text} if text or delta.logprobs else {}
        if delta.reasoning:
            said["reasoning_content"] = valid_text(delta.reasoning)
        if delta.tool_calls:
            said["tool_calls"] = [_call_delta(call) for call in delta.tool_calls]
        return self._event(self._choice(index, said, logprobs=logprobs))

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        return _chat_logprobs(logprobs) if self._chat else _completion_logprobs(logprobs, self._written[index])

    def _end(self, index: int, reason: str, **more: Any) -> bytes:
        del self._open[index]
        if not self._open and "performance" not in more:
            # The last choice: its chunk waits for `closing`, which has the performance.
            self._open[index] = reason
            return b""
        return self._event(self._choice(index, {} if self._chat else "", reason=reason), **more)

    def _around(self, index: int) -> tuple[bytes, bytes]:
        whole = self._event(self._choice(index, {"content": _MARK} if self._chat else _MARK))
        prefix, _, suffix = whole.rpartition(msgspec.json.encode(_MARK))
        return prefix, suffix

    def _choice(
        self, index: int, said: dict[str, Any] | str, *, reason: str | None = None, logprobs: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta" if self._chat else "text": said, "logprobs": logprobs, "finish_reason": reason}

    def _event(self, choice: dict[str, Any] | None, **more: Any) -> bytes:
        usage = {"usage": None} if self._include_usage else {}
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        chunk = {**self._base(kind), "choices": [] if choice is None else [choice], **usage, **more}
        return b"data: " + _on_one_line(msgspec.json.encode(chunk)) + b"\n\n"

    def _base(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._request.created, "model": self._request.model}


def _usage(done: Done) -> dict[str, int]:
    usage = done.usage
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }


def _call(identity: str, name: str, arguments: str) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": name, "arguments": valid_text(arguments)}}


def _call_delta(call: ToolCallDelta) -> dict[str, Any]:
    if call.id:
        return {"index": call.index, **_call(call.id, call.name, call.arguments)}
    return {"index": call.index, "function": {"arguments": valid_text(call.arguments)}}


def _chat_logprobs(logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
    content = [{**_scored(each), "top_logprobs": [_scored(other) for other in each.top]} for each in logprobs]
    return {"content": content, "refusal": None}


def _scored(token: TokenLogprob | Alternative) -> dict[str, Any]:
    return {"token": _shown(token.token), "logprob": token.logprob, "bytes": list(token.token)}


def _completion_logprobs(logprobs: Sequence[TokenLogprob], offset: int) -> dict[str, Any]:
    """`offset`: characters before the first of them."""
    tokens = [_shown(each.token) for each in logprobs]
    offsets: list[int] = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [each.logprob for each in logprobs],
        "top_logprobs": [{_shown(other.token): other.logprob for other in each.top} for each in logprobs],
        "text_offset": offsets,
    }


def _shown(token: bytes) -> str:
    return token.decode(errors="replace")
