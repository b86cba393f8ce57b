"""From the command line, the environment and a file to one checked struct."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import msgspec

from mesh.config.help import help_text
from mesh.config.schema import keys_of
from mesh.config.sources import Given, Keys, from_environment, from_file, from_flags
from mesh.config.values import value_of
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
    given = {**_file(keys, {**environment, **flags}), **environment, **flags}
    return schema(**{name: value_of(keys[name], what) for name, what in given.items()})


def _file(keys: Keys, given: Mapping[str, Given]) -> dict[str, Given]:
    if _FILE_KEY not in given:
        return {}
    path = value_of(keys[_FILE_KEY], given[_FILE_KEY])
    return from_file(keys, path) if isinstance(path, Path) else {}


def _answer(keys: Keys, argv: Sequence[str], program: str, description: str) -> None:
    for word in argv:
        if word in ("--help", "-h"):
            print(help_text(keys, program=program, description=description))
            raise SystemExit(0)
        if word == "--version":
            print(f"{program} {__version__}")
            raise SystemExit(0)
