"""Where a key stands in a file. The parsers give no positions.

A look-alike inside a multi-line string could be found first: the line is only a help.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_KEY = r"""(?:[\w-]+|"[^"]*"|'[^']*')"""
_TOML_KEY = re.compile(rf"""\s*({_KEY}(?:\s*\.\s*{_KEY})*)\s*=""")
_TOML_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]")


def line_of(text: str, path: Sequence[str], index: int = 0, *, is_json: bool) -> int | None:
    """The line of a key, counted from 1: of `path` in the `index`th table of the name `path[0]`; None when it is not found.

    Where the key cannot be told from its table, as in an inline table, it is the table's line.
    """
    return _json_line(text, path, index) if is_json else _toml_line(text, path, index)


def _toml_line(text: str, path: Sequence[str], index: int) -> int | None:
    table, tables = None, -1
    for number, found, is_header in _toml_paths(text):
        if found[0] != path[0]:
            continue
        if (is_header and len(found) == 1) or tables < 0:
            tables += 1
            if tables > index:
                break
            table = number if tables == index else table
        if tables == index and found[: len(path)] == list(path):
            return number
    return table


def _toml_paths(text: str) -> Iterator[tuple[int, list[str], bool]]:
    section: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TOML_HEADER.match(line):
            section = _parts(header[1])
            yield number, section, True
        elif pair := _TOML_KEY.match(line):
            yield number, section + _parts(pair[1]), False


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]


def _json_line(text: str, path: Sequence[str], index: int) -> int | None:
    start = 0
    for name, occurrence in zip(path, [0, index], strict=False):
        found = [match.start() for match in re.finditer(re.escape(json.dumps(name)) + r"\s*:", text[start:])]
        if not found:
            break
        start += found[min(occurrence, len(found) - 1)]
    return text.count("\n", 0, start) + 1 if start else None
