"""From what a source gave to a checked value, and what is valid in words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import inspect

from mesh.config.schema import bare
from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from mesh.config.schema import Key
    from mesh.config.sources import Given

_SWITCHES = {"yes": True, "on": True, "no": False, "off": False}
_SHOWN = 100
"""Characters of a wrong value that an error repeats."""


def value_of(key: Key, given: Given) -> Any:
    """The value, converted and checked. Raises Misconfigured naming where it came from and what is valid."""
    raw = given.value
    if given.text and isinstance(raw, str):
        raw = _SWITCHES.get(raw.lower(), raw) if key.shape == "switch" else raw
    try:
        value = msgspec.convert(raw, key.annotation, strict=not given.text, dec_hook=_decode)
        _check(key, value)
    except msgspec.ValidationError:
        raise Misconfigured(f"{given.origin}: {_shown(key, given.value)} is not valid; give {valid(key.type)}") from None
    except ValueError as error:
        raise Misconfigured(f"{given.origin}: {'the value is not valid' if key.option.secret else error}") from None
    return value


def _decode(wanted: type, raw: Any) -> Any:
    if wanted is Path and isinstance(raw, str) and raw:
        return Path(raw).expanduser()
    raise ValueError("give a path")


def _check(key: Key, value: Any) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not valid; give {valid(key.type)}")
    if key.option.check is None or value is None:
        return
    for item in value if key.shape == "list" else (value,):
        key.option.check(item)


def _shown(key: Key, raw: Any) -> str:
    if key.option.secret:
        return "the value"
    text = repr(raw)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def valid(info: inspect.Type) -> str:
    """What a type accepts, in words."""
    match bare(info):
        case inspect.BoolType():
            return "true or false"
        case inspect.IntType() | inspect.FloatType() as number:
            return _number(number)
        case inspect.LiteralType(values=values):
            return "one of " + ", ".join(str(value) for value in values)
        case inspect.ListType(item_type=item):
            return f"a list, each item {valid(item)}"
        case inspect.DictType():
            return "a table of KEY = text"
        case inspect.CustomType():
            return "a path"
        case _ if _is_text_or_list(info):
            return "text, or a list of texts"
        case _:
            return "text"


def _is_text_or_list(info: inspect.Type) -> bool:
    return isinstance(info, inspect.UnionType) and any(isinstance(member, inspect.ListType) for member in info.types)


def _number(number: inspect.IntType | inspect.FloatType) -> str:
    noun = "a whole number" if isinstance(number, inspect.IntType) else "a number"
    bounds = ((number.ge, "at least"), (number.gt, "over"), (number.le, "at most"), (number.lt, "under"))
    said = [f"{word} {_plain(bound)}" for bound, word in bounds if bound is not None]
    return " ".join([noun, " and ".join(said)]) if said else noun


def _plain(bound: float) -> str:
    return str(int(bound)) if bound == int(bound) else str(bound)
