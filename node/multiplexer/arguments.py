"""`--config-file` with a multiplexer file: the same as `--multiplexer-file`, and the file's `port` as the node's.

Flags and environment beat the file here as everywhere: its port only counts while neither gives one.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from node.multiplexer.file import is_multiplexer_file, read_multiplexer_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_FLAG = "--config-file"
_VARIABLE = "INFERMESH_CONFIG_FILE"


def with_multiplexer_file(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """Command line and environment as the node's schema takes them. Raises Misconfigured when such a file is wrong."""
    words, variables = list(argv), dict(environ)
    place = _place(words)
    if place is not None:
        first, count, value = place
        path = Path(value).expanduser()
        if not is_multiplexer_file(path):
            return words, variables
        words[first : first + count] = [f"--multiplexer-file={value}"]
    elif variables.get(_VARIABLE, "").strip():
        path = Path(variables[_VARIABLE].strip()).expanduser()
        if not is_multiplexer_file(path):
            return words, variables
        variables["INFERMESH_MULTIPLEXER_FILE"] = variables.pop(_VARIABLE)
    else:
        return words, variables
    variables["INFERMESH_PORT"] = variables.get("INFERMESH_PORT", "").strip() or str(read_multiplexer_file(path).port)
    return words, variables


def _place(words: list[str]) -> tuple[int, int, str] | None:
    """The last `--config-file`: where, how many words, and the file."""
    for number in range(len(words) - 1, -1, -1):
        flag, equals, value = words[number].partition("=")
        if flag == _FLAG and equals:
            return number, 1, value
        if flag == _FLAG and number + 1 < len(words):
            return number, 2, words[number + 1]
    return None
