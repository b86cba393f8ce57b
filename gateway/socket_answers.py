"""Answers on the WebSocket: the events of one request as messages, streamed or in one piece.

1. An answer ends once: `ended` is set when its last message was sent.
2. What stands in one message is bounded; a longer answer fails with `reply_too_large`.
3. Of vectors the next is put into words when the client has taken the one before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from mesh.embedding import embed
from mesh.errors import BackendFailed, BadRequest
from mesh.http import error_body
from mesh.messages.inference import Accepted, Delta, Done
from mesh.openai.embeddings import encoded
from mesh.service import paced

if TYPE_CHECKING:
    from gateway.socket_messages import Inference
    from mesh.embedding import Input
    from mesh.errors import MeshError
    from mesh.messages.inference import Event, InferenceRequest
    from mesh.service import Emit, InferenceService

MAX_REPLY_CHARACTERS = 1024 * 1024
"""In one answer that is not streamed: what one message may hold."""
MAX_VECTOR_CHARACTERS = 900_000
"""Of the vectors in one message, as JSON: with what stands around them it stays below what clients take by default, a MiB."""
Send = Callable[..., None]
Room = Callable[[], Awaitable[None]]
Infer = Callable[["InferenceRequest", "Emit"], Awaitable[None]]


class Answer:
    """What all answers have."""

    def __init__(self, send: Send, request_id: str, message: Inference, *, started: bool = False) -> None:
        """`started`: the client was told before that it has begun."""
        self.ended = False
        self._send = send
        self._id = request_id
        self._message = message
        self._started = started

    def fail(self, error: MeshError) -> None:
        """The request ended badly."""
        self.ended = True
        self._send("inference_error", request_id=self._id, **error_body(error))

    def _start(self, event: Accepted) -> None:
        if self._message.stream and not self._started:
            self._started = True
            self._send("inference_started", **self._about(), node=event.node, resume_token=event.resume_token or None)

    def _end(self, result: dict[str, Any], ending: dict[str, Any]) -> None:
        """`result` is what a stream has told before."""
        self.ended = True
        if self._message.stream:
            self._send("inference_complete", request_id=self._id, **ending)
        else:
            self._send("inference_result", **self._about(), result={**result, **ending})

    def _about(self) -> dict[str, str]:
        return {"request_id": self._id, "model": self._message.model, "task": self._message.task}


class TextAnswer(Answer):
    """Text, as it comes or collected."""

    def __init__(self, send: Send, request_id: str, message: Inference, *, started: bool = False) -> None:
        """As any answer's."""
        super().__init__(send, request_id, message, started=started)
        self._text: list[str] = []
        self._characters = 0
        self._scope = trio.CancelScope()

    async def run(self, infer: Infer, request: InferenceRequest, room: Room) -> None:
        """Send what the client should see of the request, to its end. Raises MeshError."""
        with self._scope:
            await infer(request, paced(self._emit, room))
        if self._scope.cancel_called:
            raise BackendFailed("the answer grew too long for one message; ask for a stream", code="reply_too_large")

    def _emit(self, event: Event) -> None:
        match event:
            case Delta():
                self._on_delta(event)
            case Accepted():
                self._start(event)
            case Done():
                self._on_done(event)
            case _:
                pass

    def _on_delta(self, event: Delta) -> None:
        if self._message.stream:
            self._send("inference_chunk", request_id=self._id, chunk=event.text, index=event.offset, tokens=len(event.token_ids))
        else:
            self._collect(event.text)

    def _collect(self, text: str) -> None:
        self._characters += len(text)
        if self._characters > MAX_REPLY_CHARACTERS:
            self._scope.cancel()
        else:
            self._text.append(text)

    def _on_done(self, event: Done) -> None:
        if self._scope.cancel_called:
            return
        usage = event.usage
        total = usage.prompt_tokens + usage.completion_tokens
        ending: dict[str, Any] = {
            "finish_reason": event.finish_reason,
            "usage": {**msgspec.to_builtins(usage), "total_tokens": total},
            "performance": event.performance.rounded(),
        }
        if not event.exact:
            ending["resume"] = "approximate"
        self._end({"text": "".join(self._text)}, ending)


class VectorAnswer(Answer):
    """Embeddings, one message each or all in one."""

    def __init__(self, send: Send, request_id: str, message: Inference) -> None:
        """As any answer's."""
        super().__init__(send, request_id, message)
        self._embeddings: list[msgspec.Raw] = []
        self._characters = 0
        self._sent = 0

    async def run(self, service: InferenceService, request: InferenceRequest, inputs: Sequence[Input], room: Room) -> None:
        """Send the vectors of all inputs. Raises MeshError."""

        async def take(vectors: list[bytes], accepted: Accepted) -> None:
            self._start(accepted)
            for vector in vectors:
                self._add(msgspec.Raw(msgspec.json.encode(encoded(vector, self._message.parameters.encoding_format))))
                await room()

        embedded = await embed(service, request, inputs, take, field="inputs")
        self._end({"embeddings": self._embeddings}, {"usage": embedded.usage})

    def _add(self, embedding: msgspec.Raw) -> None:
        size = len(bytes(embedding))
        self._characters = size if self._message.stream else self._characters + size
        if self._characters > MAX_VECTOR_CHARACTERS:
            raise BadRequest(
                "the vectors grew too long for one message; ask for a stream, base64, or fewer dimensions",
                code="reply_too_large",
                param="inputs",
            )
        if self._message.stream:
            self._send("inference_chunk", request_id=self._id, index=self._sent, embedding=embedding)
            self._sent += 1
        else:
            self._embeddings.append(embedding)
