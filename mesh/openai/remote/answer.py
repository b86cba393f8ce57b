"""The answer of an OpenAI-compatible server, as events of ours. No I/O: bytes go in, events come out.

1. The answer is whole when a finish reason or `[DONE]` came; what ends before is BackendFailed.
2. What the server says of tokens and their probabilities is passed on; where it says nothing, `pieces` estimates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from mesh.errors import BackendFailed
from mesh.messages.inference import ToolCallDelta
from mesh.openai.remote.event_stream import EventStream
from mesh.openai.remote.pieces import Pieces
from mesh.openai.remote.probabilities import ChoiceLogprobs, token_logprobs

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit


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
        self.complete = False
        """True once the server said that nothing more comes."""
        self._pieces = Pieces(request, emit)
        self._stream = EventStream()
        self._finish: str | None = None
        self._usage = _Usage()

    def feed(self, data: bytes) -> None:
        """Bytes of an event stream. Raises BackendFailed when they are none, or when the server reports an error."""
        for event in self._stream.feed(data):
            self._take(event)

    def take_whole(self, body: bytes) -> None:
        """The body of an answer in one piece, from a server that does not stream."""
        self._take(body)
        self.complete = True

    def end(self) -> None:
        """The server has said all: emit `Done`. Raises BackendFailed when the answer is not whole."""
        if rest := self._stream.rest():
            self._take(rest)
        if not self.complete and self._finish is None:
            raise BackendFailed("the service ended its answer in the middle; send the request again", code="incomplete_answer")
        self._pieces.done(self._finish, prompt_tokens=self._usage.prompt_tokens, completion_tokens=self._usage.completion_tokens)

    def _take(self, event: bytes) -> None:
        if event.strip() == b"[DONE]":
            self.complete = True
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
        self._pieces.say(
            said.content or "",
            reasoning=said.reasoning_content or said.reasoning or "",
            tool_calls=[_call_delta(place, call) for place, call in enumerate(said.tool_calls or [])],
            logprobs=token_logprobs(choice.logprobs),
        )
        self._finish = choice.finish_reason or self._finish


def _call_delta(place: int, call: _Call) -> ToolCallDelta:
    """An answer in one piece does not number its calls."""
    function = call.function or _Function()
    index = place if call.index is None else call.index
    return ToolCallDelta(index, call.id or "", function.name or "", function.arguments or "")


def error_text(error: Any) -> str:
    """What an error object of any server says, shortened."""
    text = error.get("message") if isinstance(error, dict) else error
    return " ".join(str(text or "no reason given").split())[:300]
