"""The answer of an OpenAI-compatible server, as events of ours. No I/O: bytes go in, events come out.

1. One `Delta` per piece of text that the server sends. It has no token ids, for a text-only service has none to give, and its
   `offset` counts pieces. Such an answer cannot be resumed elsewhere.
2. Pieces without text, reasoning, tool calls and probabilities say nothing and make no event.
3. The answer is whole when a finish reason or `[DONE]` came; what ends before is BackendFailed.
4. Where the server counts no tokens, pieces are counted, and four bytes of the prompt make a token: an estimate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import msgspec
import trio

from mesh.errors import BackendFailed
from mesh.messages.inference import Delta, Done, FinishReason, Performance, ToolCallDelta, Usage
from mesh.openai.remote.probabilities import ChoiceLogprobs, token_logprobs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit

MAX_LINE = 1024 * 1024
BYTES_PER_TOKEN = 4
_FINISH_REASONS = frozenset(get_args(FinishReason))


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    text: str | None = None
    logprobs: ChoiceLogprobs | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


_decoder = msgspec.json.Decoder(_Chunk)


class Answer:
    """One answer on its way in."""

    def __init__(self, request: InferenceRequest, emit: Emit) -> None:
        self._emit = emit
        self._prompt_tokens = estimated_tokens(request)
        self._buffer = bytearray()
        self._data: list[bytes] = []
        self._pieces = 0
        self._finish: str | None = None
        self._complete = False
        self._usage = _Usage()
        self._began = trio.current_time()
        self._first = self._last = 0.0

    @property
    def complete(self) -> bool:
        """True once the server said that nothing more comes."""
        return self._complete

    def feed(self, data: bytes) -> None:
        """Bytes of an event stream. Raises BackendFailed when they are none, or when the server reports an error."""
        self._buffer += data
        for line in self._lines():
            if line.startswith(b"data:"):
                self._data.append(line[5:].removeprefix(b" "))
            elif not line and self._data:
                event, self._data = b"\n".join(self._data), []
                self._take(event)
        if len(self._buffer) + sum(map(len, self._data)) > MAX_LINE:
            raise BackendFailed(f"the service sent an event of more than {MAX_LINE} bytes", code="bad_answer")

    def take_whole(self, body: bytes) -> None:
        """The body of an answer in one piece, from a server that does not stream."""
        self._take(body)
        self._complete = True

    def end(self) -> None:
        """The server has said all: emit `Done`. Raises BackendFailed when the answer is not whole."""
        if self._data:
            event, self._data = b"\n".join(self._data), []
            self._take(event)
        if not self._complete and self._finish is None:
            raise BackendFailed("the service ended its answer in the middle; send the request again", code="incomplete_answer")
        self._emit(self._done())

    def _lines(self) -> Iterator[bytes]:
        *lines, rest = self._buffer.split(b"\n")
        self._buffer = rest
        for line in lines:
            yield bytes(line.removesuffix(b"\r"))

    def _take(self, event: bytes) -> None:
        if event.strip() == b"[DONE]":
            self._complete = True
            return
        try:
            chunk = _decoder.decode(event)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise BackendFailed("the service answered in a shape that is not OpenAI's", code="bad_answer") from error
        if chunk.error:
            raise BackendFailed(f"the service failed: {error_text(chunk.error)}", code="service_failed")
        self._usage = chunk.usage or self._usage
        for choice in chunk.choices[:1]:
            self._choose(choice)

    def _choose(self, choice: _Choice) -> None:
        said = choice.delta or choice.message or _Message(content=choice.text)
        calls = [_call_delta(place, call) for place, call in enumerate(said.tool_calls or [])]
        reasoning = said.reasoning_content or said.reasoning or ""
        logprobs = token_logprobs(choice.logprobs)
        if said.content or reasoning or calls or logprobs:
            self._last = trio.current_time()
            self._first = self._first or self._last
            self._emit(Delta(self._pieces, [], said.content or "", reasoning=reasoning, tool_calls=calls, logprobs=logprobs))
            self._pieces += 1
        self._finish = choice.finish_reason or self._finish

    def _done(self) -> Done:
        usage = self._usage
        completion = self._pieces if usage.completion_tokens is None else usage.completion_tokens
        prompt = self._prompt_tokens if usage.prompt_tokens is None else usage.prompt_tokens
        decode = self._last - self._first
        return Done(
            finish_reason=self._finish if self._finish in _FINISH_REASONS else "stop",  # type: ignore[arg-type]  # checked there
            usage=Usage(prompt_tokens=prompt, completion_tokens=completion),
            performance=Performance(
                prefill_time_ms=1000 * ((self._first or trio.current_time()) - self._began),
                decode_time_ms=1000 * decode,
                queue_time_ms=0.0,
                tokens_per_second=max(0, completion - 1) / decode if decode > 0 else 0.0,
                batch_size=1,
            ),
        )


def _call_delta(place: int, call: _Call) -> ToolCallDelta:
    """An answer in one piece does not number its calls."""
    function = call.function or _Function()
    index = place if call.index is None else call.index
    return ToolCallDelta(index, call.id or "", function.name or "", function.arguments or "")


def estimated_tokens(request: InferenceRequest) -> int:
    """How many tokens the prompt may have: only the server has its tokenizer."""
    if isinstance(request.prompt, list):
        return len(request.prompt)
    texts = [request.prompt or "", *(str(message.get("content") or "") for message in request.messages or [])]
    return sum(len(text.encode(errors="replace")) for text in texts) // BYTES_PER_TOKEN + 1


def error_text(error: Any) -> str:
    """What an error object of any server says, shortened."""
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text or "no reason given").split())[:300]
