"""The answer of Anthropic's Messages API, as events of ours. No I/O: bytes go in, events come out.

1. Text, thinking and tool calls come in content blocks; calls are numbered in the order of their blocks.
2. The answer is whole when `message_stop` came; what ends before is BackendFailed.
3. One that goes on behind a text may begin with the white space at its end, which the API was not told of: it is not said again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from mesh.errors import BackendFailed, Busy
from mesh.messages.inference import ToolCallDelta
from mesh.openai.remote.answer import error_text
from mesh.openai.remote.event_stream import EventStream
from mesh.openai.remote.pieces import Pieces

if TYPE_CHECKING:
    from mesh.errors import MeshError
    from mesh.messages.inference import InferenceRequest
    from mesh.service import Emit

Shape = TypeVar("Shape")
_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None


class _Block(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    id: str = ""
    name: str = ""
    input: Any = None
    stop_reason: str | None = None


class _Message(msgspec.Struct):
    content: list[_Block] = []
    usage: _Usage | None = None
    stop_reason: str | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Block | None = None
    usage: _Usage | None = None
    error: Any = None


class MessagesAnswer:
    """One answer on its way in; an `Incoming` of `mesh.openai.remote.client`."""

    def __init__(self, request: InferenceRequest, emit: Emit) -> None:
        self.complete = False
        self._pieces = Pieces(request, emit)
        text = request.said.text if request.said is not None else ""
        self._given = text[len(text.rstrip()) :]
        """White space that the client has already."""
        self._stream = EventStream()
        self._calls: dict[int, int] = {}
        self._reason: str | None = None
        self._prompt_tokens: int | None = None
        self._completion_tokens: int | None = None

    def feed(self, data: bytes) -> None:
        """Bytes of an event stream. Raises BackendFailed, and Busy when the provider is overloaded."""
        for event in self._stream.feed(data):
            self._take(_decoded(event, _Event))

    def take_whole(self, body: bytes) -> None:
        """An answer in one piece."""
        message = _decoded(body, _Message)
        for index, block in enumerate(message.content):
            self._begin(index, block)
            if block.type == "tool_use" and block.input:
                self._say(index, _Block(partial_json=msgspec.json.encode(block.input).decode()))
        self._finish(message)
        self.complete = True

    def end(self) -> None:
        """Emit `Done`. Raises BackendFailed when the answer is not whole."""
        if not self.complete:
            raise BackendFailed("the service ended its answer in the middle; send the request again", code="incomplete_answer")
        self._pieces.done(
            _REASONS.get(self._reason or ""), prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens
        )

    def _take(self, event: _Event) -> None:
        match event:
            case _Event(type="message_start", message=_Message() as message):
                self._finish(message)
            case _Event(type="content_block_start", content_block=_Block() as block):
                self._begin(event.index, block)
            case _Event(type="content_block_delta", delta=_Block() as delta):
                self._say(event.index, delta)
            case _Event(type="message_delta"):
                reason = event.delta.stop_reason if event.delta else None
                self._finish(_Message(usage=event.usage, stop_reason=reason))
            case _Event(type="message_stop"):
                self.complete = True
            case _Event(type="error"):
                raise _failure(event.error)
            case _:
                pass  # pings, and what newer versions of the API may add

    def _begin(self, index: int, block: _Block) -> None:
        if block.type == "tool_use":
            self._calls[index] = len(self._calls)
            self._pieces.say("", tool_calls=[ToolCallDelta(self._calls[index], block.id, block.name)])
        else:
            self._pieces.say(self._new(block.text), reasoning=block.thinking)

    def _say(self, index: int, delta: _Block) -> None:
        calls = [ToolCallDelta(self._calls.get(index, 0), arguments=delta.partial_json)] if delta.partial_json else []
        self._pieces.say(self._new(delta.text), reasoning=delta.thinking, tool_calls=calls)

    def _new(self, text: str) -> str:
        while text and self._given:
            if text[0] != self._given[0]:
                self._given = ""
            else:
                text, self._given = text[1:], self._given[1:]
        return text

    def _finish(self, message: _Message) -> None:
        usage = message.usage or _Usage()
        if usage.input_tokens is not None:
            cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
            self._prompt_tokens = usage.input_tokens + cached
        if usage.output_tokens is not None:
            self._completion_tokens = usage.output_tokens
        self._reason = message.stop_reason or self._reason


def _decoded(data: bytes, kind: type[Shape]) -> Shape:
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BackendFailed("the service answered in a shape that is not Anthropic's", code="bad_answer") from error


def _failure(error: Any) -> MeshError:
    text = error_text(error)
    if isinstance(error, dict) and error.get("type") in ("overloaded_error", "rate_limit_error"):
        return Busy(f"the service is full: {text}", retry_after=5)
    return BackendFailed(f"the service failed: {text}", code="service_failed")
