"""Random JSON schemas, and a judge of values that knows exactly what they use."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import random

MOST_DEPTH = 3


def random_schema(source: random.Random, depth: int = 0) -> dict[str, Any]:
    """One schema; at the top an object."""
    leaves = [_integer, _number, _string, _pattern, _enum, _simple]
    kinds = [_object] if depth == 0 else leaves if depth >= MOST_DEPTH else [*leaves, _object, _array, _either]
    return source.choice(kinds)(source, depth)


def _object(source: random.Random, depth: int) -> dict[str, Any]:
    names = source.sample(["a", "b b", 'quo"te', "grün", "x1", "long_name_of_a_field"], source.randint(1, 3))
    properties = {name: random_schema(source, depth + 1) for name in names}
    required = [name for name in names if source.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(source: random.Random, depth: int) -> dict[str, Any]:
    least = source.randint(0, 2)
    return {
        "type": "array",
        "items": random_schema(source, depth + 1),
        "minItems": least,
        "maxItems": least + source.randint(0, 2),
    }


def _either(source: random.Random, depth: int) -> dict[str, Any]:
    return {"anyOf": [random_schema(source, depth + 1) for _ in range(2)]}


def _integer(source: random.Random, _depth: int) -> dict[str, Any]:
    least = source.randint(-100, 100)
    return {"type": "integer", "minimum": least, "maximum": least + source.randint(0, 1000)}


def _number(source: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": "number", "minimum": 0, "maximum": source.randint(1, 50)}


def _string(source: random.Random, _depth: int) -> dict[str, Any]:
    least = source.randint(0, 3)
    return {"type": "string", "minLength": least, "maxLength": least + source.randint(0, 10)}


def _pattern(source: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": "string", "pattern": source.choice(["^[a-f]{2,4}$", "^(yes|no)$", r"^\d{3}-\d{2}$"])}


def _enum(source: random.Random, _depth: int) -> dict[str, Any]:
    return {"enum": source.sample(["red", "grün", 7, True, None, "with space"], source.randint(1, 4))}


def _simple(source: random.Random, _depth: int) -> dict[str, Any]:
    return {"type": source.choice(["boolean", "null"])}


def faults(schema: dict[str, Any], value: Any, path: str = "$") -> list[str]:
    """What is wrong with a value; empty when it fits."""
    if "anyOf" in schema:
        return [] if any(not faults(option, value, path) for option in schema["anyOf"]) else [f"{path}: fits neither"]
    if "enum" in schema:
        return [] if any(value == each and type(value) is type(each) for each in schema["enum"]) else [f"{path}: not listed"]
    check = {
        "object": _object_faults,
        "array": _array_faults,
        "string": _string_faults,
        "integer": _range_faults,
        "number": _range_faults,
        "boolean": lambda _, value, path: [] if isinstance(value, bool) else [f"{path}: no boolean"],
        "null": lambda _, value, path: [] if value is None else [f"{path}: not null"],
    }[schema["type"]]
    return check(schema, value, path)


def _object_faults(schema: dict[str, Any], value: Any, path: str) -> list[str]:
    if not isinstance(value, dict):
        return [f"{path}: no object"]
    found = [f"{path}.{name}: missing" for name in schema["required"] if name not in value]
    for name, inner in value.items():
        known = schema["properties"].get(name)
        found += [f"{path}.{name}: unknown"] if known is None else faults(known, inner, f"{path}.{name}")
    return found


def _array_faults(schema: dict[str, Any], value: Any, path: str) -> list[str]:
    if not isinstance(value, list) or not schema["minItems"] <= len(value) <= schema["maxItems"]:
        return [f"{path}: no array of that length"]
    return [fault for index, item in enumerate(value) for fault in faults(schema["items"], item, f"{path}[{index}]")]


def _string_faults(schema: dict[str, Any], value: Any, path: str) -> list[str]:
    fits = isinstance(value, str) and (
        re.search(schema["pattern"], value) is not None
        if "pattern" in schema
        else schema["minLength"] <= len(value) <= schema["maxLength"]
    )
    return [] if fits else [f"{path}: {json.dumps(value)} is no such string"]


def _range_faults(schema: dict[str, Any], value: Any, path: str) -> list[str]:
    kinds = int if schema["type"] == "integer" else int | float
    fits = isinstance(value, kinds) and not isinstance(value, bool) and schema["minimum"] <= value <= schema["maximum"]
    return [] if fits else [f"{path}: {value!r} is out of range"]
