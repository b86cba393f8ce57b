"""What the text of an answer is to the client: a thought, speech, or tool calls."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from node.worker.output.calls import CallParser, Found
from node.worker.output.forms import asks_for_calls
from node.worker.output.thoughts import ThoughtSplitter

if TYPE_CHECKING:
    from mesh.messages.inference import InferenceRequest, ToolCallDelta
    from node.worker.output.formats import ModelFormat


class Said(NamedTuple):
    """What a piece of text turned out to be."""

    text: str
    reasoning: str = ""
    calls: list[ToolCallDelta] = []  # noqa: RUF012 - never changed


class Speech:
    """One stream of text, sorted."""

    def __init__(self, thoughts: ThoughtSplitter | None = None, calls: CallParser | None = None) -> None:
        self._thoughts = thoughts
        self._calls = calls

    @property
    def thinking(self) -> bool:
        """The model has not finished its thought."""
        return self._thoughts is not None and self._thoughts.thinking

    @property
    def called(self) -> bool:
        """A tool call was begun."""
        return self._calls is not None and self._calls.count > 0

    @property
    def completed_calls(self) -> int:
        """Tool calls that are whole."""
        return self._calls.completed if self._calls else 0

    def push(self, text: str) -> Said:
        """What this text adds."""
        reasoning, text = self._thoughts.push(text) if self._thoughts and text else ("", text)
        found = self._calls.push(text) if self._calls and text else Found(text, [])
        return Said(found.text, reasoning, found.calls)

    def finish(self, text: str) -> Said:
        """What the last text adds, and what was held back."""
        said = self.push(text)
        reasoning, text = self._thoughts.finish() if self._thoughts else ("", "")
        found = self._calls.push(text) if self._calls else Found(text, [])
        rest = self._calls.finish() if self._calls else Found("", [])
        return Said(said.text + found.text + rest.text, said.reasoning + reasoning, [*said.calls, *found.calls, *rest.calls])


def speech_of(request: InferenceRequest, model: ModelFormat, *, inside: bool) -> Speech:
    """How to read the answer to a chat request; a completion's text is text."""
    if request.task != "chat":
        return Speech()
    calls = None
    if asks_for_calls(request) and model.calls is not None:
        names = {tool["function"]["name"] for tool in request.tools}
        # The answers of one request differ in their seeds.
        calls = CallParser(model, names=names, identity=f"{request.request_id}/{request.seed}")
    return Speech(ThoughtSplitter(inside=inside) if model.thinks else None, calls)
