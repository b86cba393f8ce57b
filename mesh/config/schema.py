"""A configuration schema: a frozen `msgspec.Struct` whose fields are `Annotated[type, Option(...)]`.

1. A field's name is its key in the file; its flag and its environment variable derive from it.
2. Types: str, int, float, bool, Path, Literal; optional ones of these; `list` of them; `dict[str, str]`. `msgspec.Meta` bounds.
3. Every field has a default: a program starts without any configuration.
4. `list[Struct]` is a field of records: the tables `[field]` or `[[field]]` of the file. Each of their keys is a flag
   `--field-key` and a variable too, which are about the only record: with several in the file they are refused. A record's field
   `origin`, if it has one, is no key: it tells where the record stands.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

Shape = Literal["value", "switch", "list", "table"]
ORIGIN = "origin"


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field's type does not say.

    `environment`: further variables, strongest first, weaker than `INFERMESH_<KEY>`. `check` raises ValueError, whose text says
    what is wrong and what is valid; it sees one item of a list at a time. `in_file=False` keeps the key out of files. A `secret`
    value never appears in an error. `table`: in a file, the key may stand in this table as well.
    """

    help: str
    flag: str | None = None
    environment: tuple[str, ...] = ()
    metavar: str | None = None
    check: Callable[[Any], None] | None = None
    default_help: str | None = None
    in_file: bool = True
    secret: bool = False
    table: str | None = None


@dataclass(frozen=True)
class Key:
    """One key of a schema, resolved."""

    name: str
    annotation: Any
    option: Option
    default: Any
    record: str = ""
    """The field of records that it is a key of."""

    @property
    def path(self) -> str:
        """The key as it is told apart from all others."""
        return f"{self.record}.{self.name}" if self.record else self.name

    @property
    def flag(self) -> str:
        return self.option.flag or "--" + self.path.replace("_", "-").replace(".", "-")

    @property
    def negative_flag(self) -> str:
        return "--no-" + self.flag.removeprefix("--")

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables, strongest first."""
        return ("INFERMESH_" + self.path.upper().replace(".", "_"), *self.option.environment)

    @cached_property
    def type(self) -> msgspec.inspect.Type:
        """The type without its optionality."""
        info = msgspec.inspect.type_info(self.annotation)
        return bare(info)

    @property
    def shape(self) -> Shape:
        match self.type:
            case msgspec.inspect.BoolType():
                return "switch"
            case msgspec.inspect.ListType():
                return "list"
            case msgspec.inspect.DictType():
                return "table"
            case _:
                return "value"


def bare(info: msgspec.inspect.Type) -> msgspec.inspect.Type:
    """The type inside metadata and `| None`."""
    match info:
        case msgspec.inspect.Metadata():
            return bare(info.type)
        case msgspec.inspect.UnionType():
            return bare(next(member for member in info.types if not isinstance(member, msgspec.inspect.NoneType)))
        case _:
            return info


def keys_of(schema: type[msgspec.Struct]) -> dict[str, Key]:
    """The keys by path, in the order of the fields. Raises TypeError when a field breaks the rules above."""
    keys: dict[str, Key] = {}
    for field, hint in _fields(schema):
        record = record_type(hint)
        inside = _record_keys(field.name, record) if record else [_key(field, hint)]
        keys |= {key.path: key for key in inside}
    flags = [key.flag for key in keys.values()]
    if len(set(flags)) != len(flags):
        raise TypeError(f"{schema.__name__} uses a flag for two keys")
    return keys


def records_of(schema: type[msgspec.Struct]) -> dict[str, type[msgspec.Struct]]:
    """The fields of records, and what their records are."""
    found = {field.name: record_type(hint) for field, hint in _fields(schema)}
    return {name: record for name, record in found.items() if record}


def record_type(hint: Any) -> type[msgspec.Struct] | None:
    """What the records of a field are; None when it is a plain key."""
    match bare(msgspec.inspect.type_info(hint)):
        case msgspec.inspect.ListType(item_type=msgspec.inspect.StructType(cls=record)):
            return record
        case _:
            return None


def _record_keys(name: str, record: type[msgspec.Struct]) -> list[Key]:
    return [replace(_key(field, hint), record=name) for field, hint in _fields(record) if field.name != ORIGIN]


def _fields(schema: type[msgspec.Struct]) -> list[tuple[msgspec.structs.FieldInfo, Any]]:
    hints = get_type_hints(schema, include_extras=True)
    return [(field, hints[field.name]) for field in msgspec.structs.fields(schema)]


def _key(field: msgspec.structs.FieldInfo, annotation: Any) -> Key:
    option = next((item for item in getattr(annotation, "__metadata__", ()) if isinstance(item, Option)), None)
    if option is None:
        raise TypeError(f"the field {field.name} has no Option")
    if field.default is not msgspec.NODEFAULT:
        return Key(field.name, annotation, option, field.default)
    if field.default_factory is not msgspec.NODEFAULT:
        return Key(field.name, annotation, option, field.default_factory())
    raise TypeError(f"the field {field.name} has no default")
