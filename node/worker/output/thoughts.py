"""Splits a stream of text into what the model thinks and what it says.

1. A thought is only at the beginning, between `<think>` and `</think>`; where the prompt opened it, the answer starts inside.
2. Text that may be the beginning of a marker is held back until it is clear.
3. White space around the markers belongs to nobody.
"""

from __future__ import annotations

from typing import Literal

from node.worker.output.formats import THINK_END, THINK_START


class ThoughtSplitter:
    """One stream. `push` and `finish` return (thought, speech)."""

    def __init__(self, *, inside: bool) -> None:
        self._state: Literal["before", "thought", "between", "speech"] = "thought" if inside else "before"
        self._held = ""
        self._blank = True

    @property
    def thinking(self) -> bool:
        """The thought has not ended."""
        return self._state == "thought"

    def push(self, text: str) -> tuple[str, str]:
        """What this text adds."""
        if self._state == "speech":
            return "", text
        self._held += text
        thought = self._think() if self._begun() else ""
        return thought, self._say()

    def finish(self) -> tuple[str, str]:
        """What was held back, when nothing follows."""
        held, self._held = self._held, ""
        if self._state == "between":
            return "", ""
        return (held, "") if self._state == "thought" else ("", held)

    def _begun(self) -> bool:
        """A thought is under way, or just began."""
        if self._state == "before":
            seen = self._held.lstrip()
            if seen.startswith(THINK_START):
                self._state, self._held = "thought", seen[len(THINK_START) :]
            elif not THINK_START.startswith(seen):
                self._state = "speech"
        return self._state == "thought"

    def _think(self) -> str:
        if self._blank:
            self._held = self._held.lstrip("\n")
            self._blank = not self._held
        thought, marker, rest = self._held.partition(THINK_END)
        if marker:
            self._state, self._held = "between", rest
            return thought.rstrip("\n")
        keep = _held_back(self._held)
        thought, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return thought

    def _say(self) -> str:
        if self._state == "between" and (rest := self._held.lstrip()):
            self._state, self._held = "speech", rest
        if self._state != "speech":
            return ""
        said, self._held = self._held, ""
        return said


def _held_back(text: str) -> int:
    """How many characters at the end may belong to the marker: line ends before it, and its own beginning."""
    size = next((size for size in range(min(len(THINK_END) - 1, len(text)), 0, -1) if THINK_END.startswith(text[-size:])), 0)
    body = text[: len(text) - size]
    return size + len(body) - len(body.rstrip("\n"))
