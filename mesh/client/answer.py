"""An answer, whole or while it comes.

1. Text that arrived and was not read is at most `MAX_UNREAD` characters, an answer at most `MAX_TEXT`: beyond, the request fails.
2. Closing a stream cancels the work at its node; when `aclose` has returned, nothing runs on for it.
3. Cancelling a reader loses no text: the next one gets it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mesh.errors import BadRequest, MeshError, Unavailable
from mesh.messages.inference import Accepted, Delta, Done
from mesh.service import paced

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from mesh.messages.inference import Event, FinishReason, InferenceRequest, Performance, Usage
    from mesh.service import InferenceService

MAX_UNREAD = 1024 * 1024
ENOUGH_UNREAD = 64 * 1024
"""Beyond it the node is asked for no more until the reader came: only a node that cannot wait reaches `MAX_UNREAD`."""
MAX_TEXT = 16 * 1024 * 1024


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A finished answer. `node`: the peer id of who gave it; `attempts`: 1 = the first node tried."""

    text: str
    finish_reason: FinishReason
    usage: Usage
    performance: Performance
    node: str
    attempts: int = 1


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """One vector for each input, in their order. `node`: the peer id of who made them, of the last ones if several did."""

    vectors: list[list[float]]
    prompt_tokens: int
    node: str


class AnswerStream:
    """The pieces of an answer; each holds all the text that arrived since the one before."""

    def __init__(self) -> None:
        self.node = ""
        """Who answers; known from the first piece on."""
        self._attempts = 1
        self._pieces: list[str] = []
        self._read = 0
        self._unread = 0
        self._length = 0
        self._done: Done | None = None
        self._error: Exception | None = None
        self._news = trio.Event()
        self._was_read = trio.Event()
        self._ended = trio.Event()
        self._scope = trio.CancelScope()

    @property
    def answer(self) -> Answer:
        """The whole answer, once the stream was read to its end. Raises RuntimeError before."""
        if self._done is None:
            raise RuntimeError("the answer is not complete; read the stream to its end first")
        return Answer(
            text="".join(self._pieces),
            finish_reason=self._done.finish_reason,
            usage=self._done.usage,
            performance=self._done.performance,
            node=self.node,
            attempts=self._attempts,
        )

    def __aiter__(self) -> AsyncIterator[str]:
        """The stream itself."""
        return self

    async def __anext__(self) -> str:
        """The next piece. Blocks until there is one. Raises what ended the request, if it was not its end."""
        await trio.lowlevel.checkpoint()
        while not self._unread:
            if self._ended.is_set():
                raise self._end()
            self._news = trio.Event()
            await self._news.wait()
        piece = "".join(self._pieces[self._read :])
        self._read, self._unread = len(self._pieces), 0
        self._was_read.set()
        return piece

    async def aclose(self) -> None:
        """Stop the work, if it still runs. Does not wait for the node."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()

    async def run(self, service: InferenceService, request: InferenceRequest) -> None:
        """Let `service` answer. For the client, which has the nursery."""
        try:
            with self._scope:
                await service.infer(request, paced(self._take, self._room))
        except Exception as error:  # noqa: BLE001 - it belongs to the reader, who gets it
            self._error = error
        finally:
            self._ended.set()
            self._news.set()

    def _take(self, event: Event) -> None:
        match event:
            case Accepted():
                self.node, self._attempts = event.node, event.attempts
            case Delta() if event.text and event.choice == 0:
                self._add(event.text)
            case Done():
                self._done = event
            case _:
                pass

    async def _room(self) -> None:
        while self._unread > ENOUGH_UNREAD:
            self._was_read = trio.Event()
            await self._was_read.wait()

    def _add(self, text: str) -> None:
        self._unread += len(text)
        self._length += len(text)
        if self._unread > MAX_UNREAD:
            raise BadRequest(f"more than {MAX_UNREAD} characters were waiting to be read; read faster", code="slow_consumer")
        if self._length > MAX_TEXT:
            raise BadRequest(f"the answer has more than {MAX_TEXT} characters; set max_tokens", code="answer_too_large")
        self._pieces.append(text)
        self._news.set()

    def _end(self) -> Exception:
        if self._done is not None:
            return StopAsyncIteration()
        if isinstance(self._error, MeshError):
            return self._error
        if self._error is not None:
            return RuntimeError("the request failed on our side; see the cause").with_traceback(self._error.__traceback__)
        return Unavailable("the stream was closed before its end", code="closed")
