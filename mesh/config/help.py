"""The text of `--help`."""

from __future__ import annotations

import shutil
import textwrap
from typing import TYPE_CHECKING, Any

from msgspec import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from mesh.config.schema import Key

_INDENT = 6
_WIDEST = 100


def help_text(keys: Mapping[str, Key], *, program: str, description: str) -> str:
    """Everything an operator may set, with defaults and variables."""
    width = min(shutil.get_terminal_size().columns, _WIDEST)
    lines = [f"Usage: {program} [FLAG]...", "", *textwrap.wrap(description, width), "", "Flags:"]
    for key in keys.values():
        lines += _entry(key, width)
    lines += ["  --version", "  --help", ""]
    lines += textwrap.wrap(
        "A flag beats an environment variable, a variable beats the file, the file beats the default. In a file the keys are"
        " written with underscores; in variables, lists are comma separated.",
        width,
    )
    return "\n".join(lines)


def _entry(key: Key, width: int) -> Iterator[str]:
    yield f"  {_spelling(key)}"
    pad = " " * _INDENT
    yield from textwrap.wrap(f"{key.option.help} {_notes(key)}", width, initial_indent=pad, subsequent_indent=pad)


def _spelling(key: Key) -> str:
    if key.shape == "switch":
        return f"{key.flag}, {key.negative_flag}"
    repeat = " (may be repeated)" if key.shape in ("list", "table") else ""
    return f"{key.flag} {_metavar(key)}{repeat}"


def _metavar(key: Key) -> str:
    if key.option.metavar:
        return key.option.metavar
    match key.type:
        case inspect.LiteralType(values=values):
            return "|".join(str(value) for value in values)
        case inspect.DictType():
            return "KEY=VALUE"
        case inspect.IntType() | inspect.FloatType():
            return "N"
        case _:
            return key.name.rsplit("_", 1)[-1].upper()


def _notes(key: Key) -> str:
    default = key.option.default_help or _written(key.default)
    said = [f"default: {default}"] if default else []
    return f"[{'; '.join([*said, 'env: ' + ', '.join(key.variables)])}]"


def _written(default: Any) -> str:
    match default:
        case bool():
            return "yes" if default else "no"
        case None | "" | [] | {}:
            return ""
        case list():
            return ", ".join(str(item) for item in default)
        case float():
            return f"{default:g}"
        case _:
            return str(default)
