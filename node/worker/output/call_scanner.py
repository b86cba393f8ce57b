"""Reads one tool call, a JSON object, as its characters come: the name when it is known, the arguments while they arrive.

1. The arguments are handed out as the model wrote them: pieces of a JSON text. Where it wrote them as a string, its content is.
2. Nothing is handed out before the name is known. What is no object with a name is `broken`, and `raw` is what it was.
"""

from __future__ import annotations

import json
from typing import Literal

_ARGUMENTS = ("arguments", "parameters")
_WHITE = " \t\r\n"


class CallScanner:
    """One call. With `name` given, the object is the arguments themselves."""

    def __init__(self, name: str | None = None) -> None:
        self.name = name
        self.raw = ""
        self.done = False
        self.broken = False
        self.has_arguments = name is not None
        self._bare = name is not None
        self._expected: Literal["object", "key", "colon", "value", "comma"] = "object"
        self._depth = 0
        self._quoted = self._escaped = False
        self._key = self._value = ""
        self._argues = False
        self._fresh = ""

    @property
    def ended(self) -> bool:
        """Whatever comes next does not belong to it."""
        return self.done or self.broken

    def feed(self, text: str) -> str:
        """Read as far as the call goes. Returns the rest."""
        for place, letter in enumerate(text):
            if self.ended:
                return text[place:]
            self.raw += letter
            if self._bare:
                self._read_bare(letter)
            else:
                self._read(letter)
        return ""

    def take(self) -> str:
        """The arguments since the last time; none before the name is known."""
        if self.name is None:
            return ""
        fresh, self._fresh = self._fresh, ""
        return fresh

    def _read_bare(self, letter: str) -> None:
        if self._depth == 0 and letter != "{":
            self.broken = letter not in _WHITE
            return
        self._fresh += letter
        self._follow(letter)
        self.done = self._depth == 0

    def _follow(self, letter: str) -> None:
        """Keep track of strings and brackets."""
        if self._quoted:
            ends = letter == '"' and not self._escaped
            self._escaped = letter == "\\" and not self._escaped
            self._quoted = not ends
        elif letter == '"':
            self._quoted = True
        elif letter in "{[":
            self._depth += 1
        elif letter in "}]":
            self._depth -= 1

    def _read(self, letter: str) -> None:
        inside = self._quoted or self._depth > 1
        if not inside and letter in _WHITE:
            return
        match self._expected:
            case "object":
                self.broken = letter != "{"
                self._follow(letter)
                self._expected = "key"
            case "key":
                self._read_key(letter)
            case "colon":
                self.broken = letter != ":"
                self._expected, self._value = "value", ""
                self._argues = _text_of(self._key) in _ARGUMENTS
                self.has_arguments = self.has_arguments or self._argues
            case _:
                self._read_value(letter, ends=not inside and letter in ",}")

    def _read_key(self, letter: str) -> None:
        if not self._quoted and letter == "}" and not self._key:
            self._end()
            return
        if not self._key and letter != '"':
            self.broken = True
            return
        self._key += letter
        self._follow(letter)
        if not self._quoted:
            self._expected = "colon"

    def _read_value(self, letter: str, *, ends: bool) -> None:
        if ends:
            self._end_value()
            if letter == "}":
                self._end()
            else:
                self._expected, self._key = "key", ""
            return
        self._value += letter
        self._follow(letter)
        if self._argues and not self._value.startswith('"'):
            self._fresh += letter

    def _end_value(self) -> None:
        if self._argues:
            if self._value.startswith('"'):
                self._fresh += _text_of(self._value) or ""
        elif _text_of(self._key) == "name":
            self.name = _text_of(self._value)
            self.broken = not self.name

    def _end(self) -> None:
        self._depth -= 1
        self.done = self.name is not None
        self.broken = self.name is None


def _text_of(literal: str) -> str | None:
    """A JSON string's content; None when it is not one."""
    try:
        value = json.loads(literal)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
