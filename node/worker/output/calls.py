"""Finds tool calls in a stream of text.

1. Speech outside calls passes through; text that may begin a call is held back until it is clear, and given out as speech when it
   was none. White space between calls belongs to nobody.
2. A call's id is a function of the request, the choice and the call's place, so a resumed answer goes on with the same one.
3. Where a call has no marker (llama3), the answer must begin with an object that names one of the tools.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal, NamedTuple

from mesh.messages.inference import ToolCallDelta
from node.worker.output.call_scanner import CallScanner
from node.worker.output.formats import ARGS, CALL_END, CALL_START, CALLS, PYTHON_TAG

if TYPE_CHECKING:
    from collections.abc import Collection

    from node.worker.output.formats import ModelFormat

_LONGEST_NAME = 256


class Found(NamedTuple):
    """What a piece of text turned out to be."""

    text: str
    calls: list[ToolCallDelta]


class CallParser:
    """One stream. `count` calls were begun, `completed` of them are whole."""

    def __init__(self, model: ModelFormat, *, names: Collection[str], identity: str) -> None:
        """`identity` sets the ids of this answer's calls apart from all others."""
        assert model.calls is not None
        self._style = model.calls
        self._names = names
        self._identity = identity
        self._start = {"hermes": CALL_START, "mistral": CALLS, "llama3": PYTHON_TAG}[self._style]
        self._state: Literal["speech", "opening", "call", "closing"] = "opening" if self._style == "llama3" else "speech"
        self._held = ""
        self._marked = ""
        self._list = False
        self._scanner = CallScanner()
        self._told = False
        self._text: list[str] = []
        self._calls: list[ToolCallDelta] = []
        self.count = 0
        self.completed = 0

    def push(self, text: str) -> Found:
        """What this text adds."""
        self._held += text
        while self._held and self._step():
            pass
        return self._found()

    def finish(self) -> Found:
        """What was held back, when nothing follows."""
        if self._state == "call" and not self._told:
            self._held = self._scanner.raw + self._held
        if self._state in ("speech", "opening") or (self._state == "call" and not self._told):
            self._say(self._marked + self._held)
        self._held = self._marked = ""
        return self._found()

    def _found(self) -> Found:
        found = Found("".join(self._text), self._calls)
        self._text, self._calls = [], []
        return found

    def _step(self) -> bool:
        """Take something from what is held; False when more text is needed."""
        match self._state:
            case "speech":
                return self._speak()
            case "opening":
                return self._open()
            case "call":
                return self._call()
            case "closing":
                return self._close()

    def _speak(self) -> bool:
        if self._style == "llama3":
            self._text.append(self._held)
            self._held = ""
            return False
        before, marker, rest = self._held.partition(self._start)
        if marker:
            self._say(before)
            self._state, self._held, self._marked = "opening", rest, marker
            return True
        keep = max((size for size in range(1, len(self._start)) if self._held.endswith(self._start[:size])), default=0)
        if self.count and not self._held.strip():
            keep = len(self._held)
        self._say(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]
        return False

    def _say(self, text: str) -> None:
        if text and not (self.count and not text.strip()):
            self._text.append(text)

    def _open(self) -> bool:
        """Behind the marker: what kind of call is this?"""
        seen = self._held.lstrip()
        if not seen:
            return False
        if self._style == "llama3" and not self._marked and PYTHON_TAG.startswith(seen[: len(PYTHON_TAG)]):
            if len(seen) < len(PYTHON_TAG):
                return False
            self._marked, self._held = PYTHON_TAG, seen[len(PYTHON_TAG) :]
            return True
        if seen[0] == "{":
            return self._begin(seen, CallScanner())
        if self._style == "mistral":
            return self._open_mistral(seen)
        return self._give_up()

    def _open_mistral(self, seen: str) -> bool:
        if seen[0] == "[" and not self._list and not seen.startswith(ARGS[: len(seen)]):
            self._list, self._held, self._marked = True, seen[1:], self._marked + "["
            return True
        name, brace, rest = seen.partition("{")
        if brace and (found := name.replace(ARGS, "").strip()):
            return self._begin(brace + rest, CallScanner(found))
        return self._give_up() if brace or len(seen) > _LONGEST_NAME else False

    def _begin(self, text: str, scanner: CallScanner) -> bool:
        self._state, self._held = "call", text
        self._scanner, self._told = scanner, False
        return True

    def _give_up(self) -> bool:
        self._text.append(self._marked + self._held)
        self._held = self._marked = ""
        self._state = "speech"
        return False

    def _call(self) -> bool:
        scanner = self._scanner
        self._held = scanner.feed(self._held)
        if scanner.broken or (self._style == "llama3" and not self._told and self._foreign()):
            self._held = scanner.raw + self._held
            return self._give_up()
        self._tell()
        if scanner.done:
            self.completed += 1
            self._marked = ""
            self._state = "closing"
        return scanner.done

    def _foreign(self) -> bool:
        """It is an object, but none of ours."""
        scanner = self._scanner
        return (scanner.name is not None and scanner.name not in self._names) or (scanner.done and not scanner.has_arguments)

    def _tell(self) -> None:
        scanner = self._scanner
        if scanner.name is None or (self._style == "llama3" and not scanner.has_arguments and not scanner.done):
            return
        if not self._told:
            self._told = True
            self._calls.append(ToolCallDelta(self.count, id=self._id(), name=scanner.name, arguments=scanner.take()))
            self.count += 1
        elif piece := scanner.take():
            self._calls.append(ToolCallDelta(self.count - 1, arguments=piece))
        if scanner.done and not scanner.has_arguments:
            self._calls.append(ToolCallDelta(self.count - 1, arguments="{}"))

    def _close(self) -> bool:
        """Behind a call: its end marker, or what separates it from the next one."""
        seen = self._held.lstrip()
        if not seen:
            self._held = ""
            return False
        if self._style == "hermes":
            if CALL_END.startswith(seen[: len(CALL_END)]) and len(seen) < len(CALL_END):
                self._held = seen
                return False
            self._state, self._held = "speech", seen.removeprefix(CALL_END)
        elif seen[0] in (",;" if self._list or self._style == "llama3" else ""):
            self._state, self._held = "opening", seen[1:]
        else:
            self._state, self._held = "speech", seen.removeprefix("]") if self._list else seen
            self._list = False
        return True

    def _id(self) -> str:
        digest = hashlib.blake2b(f"{self._identity}/{self.count}".encode(), digest_size=12).hexdigest()
        # Mistral's templates take nine letters or digits back and nothing else.
        return digest[:9] if self._style == "mistral" else f"call_{digest}"
