"""Models that a Python program serves by functions of its own.

1. A handler is an async generator function: it takes the request and yields pieces of text. Each piece counts as one token.
2. At most `MAX_RUNNING` requests per model run at once; `max_tokens` ends an answer as `length`.
3. A model without a handler is announced as loading: known, and asked by nobody.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import msgspec
import trio

from mesh.beyond_text import refuse
from mesh.errors import Busy, NotFound, Unavailable
from mesh.messages.inference import Accepted, Delta, Done, InferenceRequest, Performance, Usage
from mesh.messages.link import ModelLoad
from mesh.messages.record import Capabilities, ModelEntry
from mesh.service import room

if TYPE_CHECKING:
    from mesh.messages.inference import FinishReason
    from mesh.service import Emit

MAX_RUNNING = 64

Handler = Callable[[InferenceRequest], AsyncGenerator[str, None]]


class Handlers:
    """An `InferenceService` over functions. `changed` is called after the load or an entry did."""

    def __init__(self, changed: Callable[[], None]) -> None:
        self.tasks: list[str] = []
        """What the models can do; none stands for everything."""
        self._changed = changed
        self._handlers: dict[str, Handler | None] = {}
        self._running: Counter[str] = Counter()

    def register(self, model: str, handler: Handler | None) -> None:
        """Serve a model, or change how."""
        self._handlers[model] = handler or self._handlers.get(model)
        self._changed()

    def serves(self, model: str) -> bool:
        """True when a request for it can be answered here."""
        return self._handlers.get(model) is not None

    def entries(self) -> list[ModelEntry]:
        """What the record says."""
        capabilities = Capabilities(tasks=list(self.tasks))
        return [
            ModelEntry(id=model, state=load.state, backend="python", capabilities=capabilities)
            for model, load in self.load().items()
        ]

    def load(self) -> dict[str, ModelLoad]:
        """What the heartbeat says."""
        return {
            model: ModelLoad("ready" if handler else "loading", running=self._running[model], slots=MAX_RUNNING)
            for model, handler in self._handlers.items()
        }

    async def infer(self, request: InferenceRequest, emit: Emit) -> None:
        """Run one request. Raises NotFound, Unavailable, Busy, or what the handler raises."""
        model = request.model
        if model not in self._handlers:
            raise NotFound(f"model {model!r} is not served here", code="model_not_found", param="model")
        handler = self._handlers[model]
        refuse(request, f"the handler of {model!r}")
        if handler is None:
            raise Unavailable(f"model {model!r} has no handler here yet; ask another node", code="model_unavailable")
        if self._running[model] >= MAX_RUNNING:
            raise Busy(f"{MAX_RUNNING} requests for {model!r} run here already; ask another node or wait")
        self._running[model] += 1
        self._changed()
        try:
            await self._run(handler, request, emit)
        finally:
            self._running[model] -= 1
            self._changed()

    async def _run(self, handler: Handler, request: InferenceRequest, emit: Emit) -> None:
        running = self._running[request.model]
        emit(Accepted(running=running))
        began = first = trio.current_time()
        count = 0
        reason: FinishReason = "stop"
        async with aclosing(handler(request)) as pieces:
            async for piece in pieces:
                first = first if count else trio.current_time()
                emit(Delta(0, [], piece))
                count += 1
                if request.max_tokens is not None and count >= request.max_tokens:
                    reason = "length"
                    break
                await room(emit)
        emit(_done(request, count, reason, Times(began, first, trio.current_time()), running))


class Times(msgspec.Struct, frozen=True):
    """When a request began, had its first piece, and ended."""

    began: float
    first: float
    ended: float


def _done(request: InferenceRequest, count: int, reason: FinishReason, times: Times, running: int) -> Done:
    decode = times.ended - times.first
    return Done(
        finish_reason=reason,
        usage=Usage(prompt_tokens=_words(request), completion_tokens=count),
        performance=Performance(
            prefill_time_ms=(times.first - times.began) * 1000,
            decode_time_ms=decode * 1000,
            queue_time_ms=0.0,
            tokens_per_second=(count - 1) / decode if decode > 0 and count > 1 else 0.0,
            batch_size=running,
        ),
    )


def _words(request: InferenceRequest) -> int:
    """A handler has no tokenizer: the words of the prompt."""
    texts = [str(message.get("content") or "") for message in request.messages or []]
    return sum(len(text.split()) for text in [*texts, request.prompt if isinstance(request.prompt, str) else ""])
