"""A configuration schema: a frozen `msgspec.Struct` whose fields are `Annotated[type, Option(...)]`.

1. A field's name is its key in the file; its flag and its environment variable derive from it.
2. Types: str, int, float, bool, Path, Literal; optional ones of these; `list` of them; `dict[str, str]`. `msgspec.Meta` bounds.
3. Every field has a default: a program starts without any configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable

Shape = Literal["value", "switch", "list", "table"]


@dataclass(frozen=True, kw_only=True)
class Option:
    """What a field's type does not say.

    `environment`: further variables, strongest first, weaker than `INFERMESH_<KEY>`. `check` raises ValueError, whose text says
    what is wrong and what is valid; it sees one item of a list at a time. `in_file=False` keeps the key out of files. A `secret`
    value never appears in an error.
    """

    help: str
    flag: str | None = None
    environment: tuple[str, ...] = ()
    metavar: str | None = None
    check: Callable[[Any], None] | None = None
    default_help: str | None = None
    in_file: bool = True
    secret: bool = False


@dataclass(frozen=True)
class Key:
    """One key of a schema, resolved."""

    name: str
    annotation: Any
    option: Option
    default: Any

    @property
    def flag(self) -> str:
        return self.option.flag or "--" + self.name.replace("_", "-")

    @property
    def negative_flag(self) -> str:
        return "--no-" + self.flag.removeprefix("--")

    @property
    def variables(self) -> tuple[str, ...]:
        """Environment variables, strongest first."""
        return ("INFERMESH_" + self.name.upper(), *self.option.environment)

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
    """The keys by name, in the order of the fields. Raises TypeError when a field breaks the rules above."""
    hints = get_type_hints(schema, include_extras=True)
    keys = {field.name: _key(field, hints[field.name]) for field in msgspec.structs.fields(schema)}
    flags = [key.flag for key in keys.values()]
    if len(set(flags)) != len(flags):
        raise TypeError(f"{schema.__name__} uses a flag for two keys")
    return keys


def _key(field: msgspec.structs.FieldInfo, annotation: Any) -> Key:
    option = next((item for item in getattr(annotation, "__metadata__", ()) if isinstance(item, Option)), None)
    if option is None:
        raise TypeError(f"the field {field.name} has no Option")
    if field.default is not msgspec.NODEFAULT:
        return Key(field.name, annotation, option, field.default)
    if field.default_factory is not msgspec.NODEFAULT:
        return Key(field.name, annotation, option, field.default_factory())
    raise TypeError(f"the field {field.name} has no default")
