"""What flags and environment variables gave (`file` has the third source). Nothing is converted here, only found and named.

1. Each function returns `{key path: Given}` for the keys that its source really gives; an empty variable gives nothing.
2. A `Given` names its origin as the operator wrote it: the flag, the variable, the file and line.
3. What no key claims is an error with the nearest valid name, except in the environment, which all programs share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from mesh.config.schema import Key

Keys = Mapping[str, "Key"]


@dataclass(frozen=True)
class Given:
    """A raw value. `text`: it came as text, so "30" may become a number."""

    value: Any
    origin: str
    text: bool


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint for a mistyped name: the nearest known one, or all of them when none is near."""
    plain = {name.replace("_", "-"): name for name in known}
    close = get_close_matches(word.replace("_", "-"), plain, n=1, cutoff=0.6)
    return f"did you mean {plain[close[0]]}?" if close else f"valid are: {', '.join(known)}"


# Flags


def from_flags(keys: Keys, argv: Sequence[str], program: str) -> dict[str, Given]:
    """What the command line gives: `--key value`, `--key=value`, `--switch`, `--no-switch`; lists and tables by repeating."""
    found: dict[str, list[str]] = {}
    for key, value in _flag_pairs(keys, argv, program):
        found.setdefault(key.path, []).append(value)
    return {path: _from_texts(keys[path], texts, keys[path].flag) for path, texts in found.items()}


def _flag_pairs(keys: Keys, argv: Sequence[str], program: str) -> Iterator[tuple[Key, str]]:
    positive = {key.flag: key for key in keys.values()}
    negative = {key.negative_flag: key for key in keys.values() if key.shape == "switch"}
    flags = [*positive, *negative]
    words = iter(argv)
    for word in words:
        flag, equals, value = word.partition("=")
        if not word.startswith("--") or word == "--":
            raise Misconfigured(f"unexpected argument {word!r}: everything is a flag; see {program} --help")
        if flag in negative and not equals:
            yield negative[flag], "false"
        elif flag not in positive:
            raise Misconfigured(f"unknown flag {flag}: {_nearest_flag(flag, flags, program)}")
        elif equals or positive[flag].shape == "switch":
            yield positive[flag], value if equals else "true"
        else:
            yield positive[flag], _following(words, flag, flags)


def _following(words: Iterator[str], flag: str, flags: Sequence[str]) -> str:
    value = next(words, None)
    if value is None or value.partition("=")[0] in flags:
        raise Misconfigured(f"{flag} needs a value: write {flag} VALUE, or {flag}=VALUE when the value looks like a flag")
    return value


def _nearest_flag(flag: str, flags: Sequence[str], program: str) -> str:
    close = get_close_matches(flag, flags, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"see {program} --help"


def _from_texts(key: Key, texts: list[str], origin: str) -> Given:
    match key.shape:
        case "list":
            return Given(texts, origin, text=True)
        case "table":
            return Given(_table(texts, origin), origin, text=True)
        case _:
            return Given(texts[-1], origin, text=True)


def _table(texts: list[str], origin: str) -> dict[str, str]:
    table: dict[str, str] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise Misconfigured(f"{origin}: {text!r} is not valid; write it as KEY=VALUE")
        if name in table:
            raise Misconfigured(f"{origin}: {name!r} is given twice; give each key once")
        table[name] = value
    return table


# Environment


def from_environment(keys: Keys, environ: Mapping[str, str]) -> dict[str, Given]:
    """What the environment gives; lists and tables are comma separated."""
    found: dict[str, Given] = {}
    for key in keys.values():
        variable = next((name for name in key.variables if environ.get(name, "").strip()), None)
        if variable is not None:
            value = environ[variable].strip()
            texts = [item.strip() for item in value.split(",") if item.strip()] if key.shape in ("list", "table") else [value]
            found[key.path] = _from_texts(key, texts, variable)
    return found
