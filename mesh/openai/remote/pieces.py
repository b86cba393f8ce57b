"""The events of an answer that comes as text: one `Delta` for each piece, then `Done`.

1. A piece has no token ids, for a text-only service has none to give, and its `offset` counts pieces.
2. A piece that says nothing makes no event.
3. Where nobody counts tokens, pieces are counted, and four bytes of the prompt make a token: an estimate.
4. Pieces that another node gave out before count as the answer's, and not as the prompt's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, get_args

import trio

from mesh.messages.inference import Delta, Done, FinishReason, Performance, Usage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mesh.messages.inference import InferenceRequest, TokenLogprob, ToolCallDelta
    from mesh.service import Emit

BYTES_PER_TOKEN = 4
_FINISH_REASONS = frozenset(get_args(FinishReason))


class Pieces:
    """One answer, piece by piece; its clock starts when it is made."""

    def __init__(self, request: InferenceRequest, emit: Emit) -> None:
        self._emit = emit
        self._prompt_tokens = estimated_tokens(request)
        self._before = self._count = 0 if request.said is None else request.said.pieces
        self._began = trio.current_time()
        self._first = self._last = 0.0

    def say(
        self,
        text: str,
        *,
        reasoning: str = "",
        tool_calls: Sequence[ToolCallDelta] = (),
        logprobs: Sequence[TokenLogprob] = (),
    ) -> None:
        """One more piece."""
        if not (text or reasoning or tool_calls or logprobs):
            return
        self._last = trio.current_time()
        self._first = self._first or self._last
        delta = Delta(self._count, [], text, reasoning=reasoning, tool_calls=list(tool_calls), logprobs=list(logprobs))
        self._emit(delta)
        self._count += 1

    def done(self, finish_reason: str | None, *, prompt_tokens: int | None = None, completion_tokens: int | None = None) -> None:
        """The end. An unheard-of reason is `stop`; None for a count that nobody told."""
        completion = self._count if completion_tokens is None else completion_tokens + self._before
        prompt = self._prompt_tokens if prompt_tokens is None else max(0, prompt_tokens - self._before)
        decode = self._last - self._first
        self._emit(
            Done(
                finish_reason=finish_reason if finish_reason in _FINISH_REASONS else "stop",  # type: ignore[arg-type]  # checked there
                usage=Usage(prompt, completion),
                performance=Performance(
                    prefill_time_ms=1000 * ((self._first or trio.current_time()) - self._began),
                    decode_time_ms=1000 * decode,
                    queue_time_ms=0.0,
                    tokens_per_second=max(0, completion - self._before - 1) / decode if decode > 0 else 0.0,
                    batch_size=1,
                ),
            )
        )


def estimated_tokens(request: InferenceRequest) -> int:
    """How many tokens the prompt may have: only the server has its tokenizer."""
    if isinstance(request.prompt, list):
        return len(request.prompt)
    texts = [request.prompt or "", *(str(message.get("content") or "") for message in request.messages or [])]
    return sum(len(text.encode(errors="replace")) for text in texts) // BYTES_PER_TOKEN + 1
