"""From the command line, the environment and a file to one checked struct."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from mesh.config.file import FileContent, Record, from_file
from mesh.config.help import help_text
from mesh.config.schema import ORIGIN, keys_of, records_of
from mesh.config.sources import Given, Keys, from_environment, from_flags
from mesh.config.values import value_of
from mesh.errors import Misconfigured
from mesh.version import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Schema = TypeVar("Schema", bound=msgspec.Struct)

_FILE_KEY = "config_file"


def load(schema: type[Schema], argv: Sequence[str], environ: Mapping[str, str], *, program: str, description: str) -> Schema:
    """The configuration: flags > environment > file > default, for every key.

    `argv` is without the program's name. `--help` and `--version` print and raise SystemExit(0). Raises Misconfigured, one line.
    """
    keys = keys_of(schema)
    _answer(keys, argv, program, description)
    flags = from_flags(keys, argv, program)
    environment = from_environment(keys, environ)
    file = _file(keys, {**environment, **flags})
    given = {**file.values, **environment, **flags}
    values = {path: value_of(keys[path], what) for path, what in given.items() if not keys[path].record}
    for name, record in records_of(schema).items():
        overrides = {path: what for path, what in {**environment, **flags}.items() if keys[path].record == name}
        values[name] = [_record(record, keys, each) for each in _overridden(name, file.records.get(name, []), overrides)]
    return schema(**values)


def _overridden(name: str, records: list[Record], overrides: dict[str, Given]) -> list[Record]:
    """Flags and variables are about the only record."""
    if not overrides:
        return records
    if len(records) > 1:
        origin = next(iter(overrides.values())).origin
        raise Misconfigured(
            f"{origin} is about the only [{name}], and the file has {len(records)} of them: change it in the file, as in"
            f" {records[0].origin}"
        )
    (only,) = records or [Record({}, "")]
    return [Record({**only.values, **overrides}, only.origin)]


def _record(record: type[msgspec.Struct], keys: Keys, given: Record) -> msgspec.Struct:
    values = {keys[path].name: value_of(keys[path], what) for path, what in given.values.items()}
    if ORIGIN in record.__struct_fields__:
        values[ORIGIN] = given.origin
    return record(**values)


def _file(keys: Keys, given: Mapping[str, Given]) -> FileContent:
    if _FILE_KEY not in given:
        return FileContent()
    path = value_of(keys[_FILE_KEY], given[_FILE_KEY])
    return from_file(keys, path) if isinstance(path, Path) else FileContent()


def _answer(keys: Keys, argv: Sequence[str], program: str, description: str) -> None:
    for word in argv:
        if word in ("--help", "-h"):
            print(help_text(keys, program=program, description=description))
            raise SystemExit(0)
        if word == "--version":
            print(f"{program} {__version__}")
            raise SystemExit(0)
