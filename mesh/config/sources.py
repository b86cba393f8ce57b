"""What each source gave: flags, environment variables, a file. Nothing is converted here, only found and named.

1. Each function returns `{key name: Given}` for the keys that its source really gives; an empty variable gives nothing.
2. A `Given` names its origin as the operator wrote it: the flag, the variable, the file and line.
3. What no key claims is an error with the nearest valid name, except in the environment, which all programs share.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from pathlib import Path

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
        found.setdefault(key.name, []).append(value)
    return {name: _from_texts(keys[name], texts, keys[name].flag) for name, texts in found.items()}


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
            found[key.name] = _from_texts(key, texts, variable)
    return found


# File


def from_file(keys: Keys, path: Path) -> dict[str, Given]:
    """What a TOML or JSON file gives. Raises Misconfigured with the line of what is wrong."""
    text = _read(path)
    known = [key.name for key in keys.values() if key.option.in_file]
    found: dict[str, Given] = {}
    for name, value in _parse(path, text).items():
        where = _where(path, text, name)
        if name not in known:
            raise Misconfigured(f"{where}: unknown key {name!r}; {nearest(name, known)}")
        found[name] = Given(value, f"{where}, {name}", text=False)
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise Misconfigured(f"cannot read the configuration file {path}: {error.strerror}; check --config-file") from error
    except UnicodeDecodeError as error:
        raise Misconfigured(f"the configuration file {path} is not UTF-8 text; save it as UTF-8") from error


def _parse(path: Path, text: str) -> dict[str, Any]:
    suffix = path.suffix.lower()
    if suffix not in (".toml", ".json"):
        raise Misconfigured(f"the configuration file {path} must end in .toml or .json: its ending says how to read it")
    try:
        parsed = tomllib.loads(text) if suffix == ".toml" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Misconfigured(f"{path} is not valid {suffix[1:].upper()}: {error}") from error
    if not isinstance(parsed, dict):
        raise Misconfigured(f"{path} must hold one object of keys and values")
    return parsed


def _where(path: Path, text: str, name: str) -> str:
    line = _json_line(text, name) if path.suffix.lower() == ".json" else _toml_line(text, name)
    return f"{path}, line {line}" if line else str(path)


_TOML_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_TOML_HEADER = re.compile(r"\s*\[\[?\s*([^\[\]]+?)\s*\]")


def _toml_line(text: str, name: str) -> int | None:
    # The parser gives no positions. A look-alike inside a multi-line string could be found first: the line is only a help.
    section: list[str] = []
    for number, line in enumerate(text.splitlines(), 1):
        if header := _TOML_HEADER.match(line):
            section = _parts(header[1])
            path = section
        elif pair := _TOML_KEY.match(line):
            path = section + _parts(pair[1])
        else:
            continue
        if path[0] == name:
            return number
    return None


def _parts(dotted: str) -> list[str]:
    return [part.strip().strip("\"'") for part in dotted.split(".")]


def _json_line(text: str, name: str) -> int | None:
    found = re.search(re.escape(json.dumps(name)) + r"\s*:", text)
    return text.count("\n", 0, found.start()) + 1 if found else None
