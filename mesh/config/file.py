"""What a configuration file gave: TOML or JSON, by its ending. Nothing is converted here, only found and named.

1. A key that no schema claims is an error with the file, the line and the nearest valid key.
2. Records are the tables `[name]` or `[[name]]`; `[name]` is the only one. Their keys are told apart by the record's number.
"""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mesh.config.positions import line_of
from mesh.config.sources import Given, Keys, nearest
from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_RECORDS = 256


@dataclass(frozen=True)
class Record:
    """One table of a field of records: what it gave by key path, and where it stands."""

    values: dict[str, Given]
    origin: str


@dataclass(frozen=True)
class FileContent:
    """What a file gave: plain keys by path, records by field."""

    values: dict[str, Given] = field(default_factory=dict)
    records: dict[str, list[Record]] = field(default_factory=dict)


def from_file(keys: Keys, path: Path) -> FileContent:
    """What a TOML or JSON file gives. Raises Misconfigured with the line of what is wrong."""
    return _Reader(keys, path, _read(path)).content()


class _Reader:
    def __init__(self, keys: Keys, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._is_json = path.suffix.lower() == ".json"
        self._plain = [key.name for key in keys.values() if key.option.in_file and not key.record]
        self._in_table: dict[str, list[str]] = {}
        self._in_record: dict[str, list[str]] = {}
        for key in keys.values():
            if key.option.table:
                self._in_table.setdefault(key.option.table, []).append(key.name)
            if key.record:
                self._in_record.setdefault(key.record, []).append(key.name)

    def content(self) -> FileContent:
        content = FileContent()
        for name, value in _parse(self._path, self._text).items():
            if name in self._in_record:
                content.records[name] = list(self._records(name, value))
            elif name in self._in_table and isinstance(value, dict):
                self._add_table(content.values, name, value)
            else:
                self._check(name, [*self._plain, *self._in_table, *self._in_record], (name,))
                self._add(content.values, name, value, (name,))
        return content

    def _add_table(self, values: dict[str, Given], table: str, content: dict[str, Any]) -> None:
        for name, value in content.items():
            self._check(name, self._in_table[table], (table, name))
            self._add(values, name, value, (table, name))

    def _records(self, name: str, value: Any) -> Iterator[Record]:
        tables = value if isinstance(value, list) else [value]
        if not all(isinstance(table, dict) for table in tables):
            raise Misconfigured(
                f"{self._where((name,))}: {name} must be a table; write [{name}], or [[{name}]] for each of several"
            )
        if len(tables) > MAX_RECORDS:
            raise Misconfigured(f"{self._path} has {len(tables)} tables [[{name}]]; {MAX_RECORDS} are allowed")
        for index, table in enumerate(tables):
            values: dict[str, Given] = {}
            for key, item in table.items():
                self._check(key, self._in_record[name], (name, key), index)
                self._add(values, f"{name}.{key}", item, (name, key), index)
            yield Record(values, self._where((name,), index))

    def _check(self, name: str, known: list[str], path: tuple[str, ...], index: int = 0) -> None:
        if name not in known:
            raise Misconfigured(f"{self._where(path, index)}: unknown key {name!r}; {nearest(name, known)}")

    def _add(self, values: dict[str, Given], name: str, value: Any, path: tuple[str, ...], index: int = 0) -> None:
        where = self._where(path, index)
        if name in values:
            raise Misconfigured(f"{where}: {name} is given twice, by itself and in a table; leave one of them out")
        values[name] = Given(value, f"{where}, {'.'.join(path)}", text=False)

    def _where(self, path: tuple[str, ...], index: int = 0) -> str:
        line = line_of(self._text, path, index, is_json=self._is_json)
        return f"{self._path}, line {line}" if line else str(self._path)


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
