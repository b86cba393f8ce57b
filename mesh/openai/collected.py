"""The events of an answer that is given in one piece."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mesh.messages.inference import ToolCallDelta

if TYPE_CHECKING:
    from mesh.messages.inference import Delta, FinishReason, TokenLogprob

_LOGPROB_SIZE = 64
"""What one token's probability counts as, in characters."""


class CollectedChoice:
    """One choice, put together. `size` is about the characters that it takes."""

    def __init__(self) -> None:
        self.size = 0
        self.finish_reason: FinishReason | None = None
        self.logprobs: list[TokenLogprob] = []
        self._texts: list[str] = []
        self._reasoning: list[str] = []
        self._calls: dict[int, list[ToolCallDelta]] = {}

    @property
    def text(self) -> str:
        """What it says."""
        return "".join(self._texts)

    @property
    def reasoning(self) -> str:
        """What it thought before."""
        return "".join(self._reasoning)

    @property
    def tool_calls(self) -> list[ToolCallDelta]:
        """Its calls, each in one piece, in their order."""
        return [
            ToolCallDelta(index, pieces[0].id, pieces[0].name, "".join(piece.arguments for piece in pieces))
            for index, pieces in sorted(self._calls.items())
        ]

    def add(self, delta: Delta) -> None:
        """One more piece."""
        if delta.text:
            self._texts.append(delta.text)
        if delta.reasoning:
            self._reasoning.append(delta.reasoning)
        for call in delta.tool_calls:
            self._calls.setdefault(call.index, []).append(call)
            self.size += len(call.name) + len(call.arguments) + _LOGPROB_SIZE
        self.logprobs += delta.logprobs
        self.size += len(delta.text) + len(delta.reasoning)
        self.size += sum(_LOGPROB_SIZE * (1 + len(each.top)) for each in delta.logprobs)
        self.finish_reason = delta.finish_reason or self.finish_reason
