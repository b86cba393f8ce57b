"""Multiplexer files: YAML or JSON as they have always been, and the same in TOML. By extension: anything else is JSON.

    models: {NAME: {port, wake, sleep, alive}}, policy: {...}, port: 3000

Whatever is wrong is told with the path of the file, the line and the key.
"""

from __future__ import annotations

import difflib
import json
import tomllib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import msgspec
import yaml  # type: ignore[import-untyped]  # it has no types; what it gives is checked here

from mesh.errors import Misconfigured
from node.multiplexer.hooked import HookSettings
from node.multiplexer.memory import check_budget, check_size, parse_size
from node.multiplexer.settings import MultiplexerSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

DEFAULT_PORT = 3000
MAX_BYTES = 1024 * 1024
YAML_ENDINGS = (".yaml", ".yml")

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Limit = Annotated[float, msgspec.Meta(gt=0)]
Struct = TypeVar("Struct", bound=msgspec.Struct)


class _Model(msgspec.Struct, frozen=True, kw_only=True):
    port: Port
    wake: str
    sleep: str
    alive: str
    wake_timeout_secs: Limit = 600.0
    sleep_timeout_secs: Limit = 120.0
    alive_timeout_secs: Limit = 10.0
    memory: str = ""


class _Top(msgspec.Struct, frozen=True, kw_only=True):
    models: dict[str, Any]
    policy: dict[str, Any] = {}
    port: Annotated[int, msgspec.Meta(ge=0, le=65534)] = DEFAULT_PORT


@dataclass(frozen=True, kw_only=True)
class MultiplexerFile:
    """A checked file. `port` is where the node answers OpenAI HTTP over all its models."""

    models: tuple[HookSettings, ...]
    settings: MultiplexerSettings
    port: int = DEFAULT_PORT


def is_multiplexer_file(path: Path) -> bool:
    """Whether a configuration file is one of these: every YAML file, and TOML and JSON with a table `models`."""
    if path.suffix.lower() in YAML_ENDINGS:
        return True
    try:
        content = _parsed(path, _text(path))
    except Misconfigured:
        return False  # whoever reads it next says what is wrong with it
    return isinstance(content, dict) and isinstance(content.get("models"), dict)


def read_multiplexer_file(path: Path) -> MultiplexerFile:
    """Read and check a file. Raises Misconfigured."""
    text = _text(path)
    content = _parsed(path, text)
    if not isinstance(content, dict):
        raise Misconfigured(f"{path} must hold one object with models, policy and port")
    reader = _Reader(path, text)
    top = reader.convert(content, _Top, ())
    if not top.models:
        raise Misconfigured(f"{path}: models is empty; name at least one model")
    settings = reader.convert(top.policy, MultiplexerSettings, ("policy",))
    reader.check(("policy", "memory_budget"), check_budget, settings.memory_budget)
    models = tuple(_hooks(reader, name, reader.convert(model, _Model, ("models", name))) for name, model in top.models.items())
    _check_ports(reader, top.port, models)
    return MultiplexerFile(models=models, settings=settings, port=top.port)


def _hooks(reader: _Reader, name: str, model: _Model) -> HookSettings:
    reader.check(("models", name, "memory"), check_size, model.memory)
    memory = parse_size(model.memory) if model.memory else 0
    return HookSettings(model=name, **{**msgspec.structs.asdict(model), "memory": memory})


def _check_ports(reader: _Reader, port: int, models: tuple[HookSettings, ...]) -> None:
    owners = {port: "port", port + 1: "port + 1, for health and control,"} if port else {}
    for model in models:
        if model.port in owners:
            where = reader.where(("models", model.model, "port"))
            raise Misconfigured(f"{where}: {owners[model.port]} has {model.port} already; give {model.model} another port")
        owners[model.port] = model.model


def _text(path: Path) -> str:
    try:
        data = path.read_bytes()
        if len(data) > MAX_BYTES:
            raise Misconfigured(f"{path} has more than {MAX_BYTES} bytes; it is no multiplexer file")
        return data.decode()
    except OSError as error:
        raise Misconfigured(f"cannot read the configuration file {path}: {error.strerror}; check --config-file") from error
    except UnicodeDecodeError as error:
        raise Misconfigured(f"the configuration file {path} is not UTF-8 text; save it as UTF-8") from error


def _parsed(path: Path, text: str) -> Any:
    try:
        match path.suffix.lower():
            case ".yaml" | ".yml":
                return yaml.safe_load(text)
            case ".toml":
                return tomllib.loads(text)
            case _:
                return json.loads(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        problem = getattr(error, "problem", None) or "it cannot be read"
        raise Misconfigured(f"{path}{where}: this is not valid YAML: {problem}") from error
    except json.JSONDecodeError as error:
        raise Misconfigured(f"{path}, line {error.lineno}: this is not valid JSON: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise Misconfigured(f"{path} cannot be read: {error}") from error


class _Reader:
    """Converts parts of the content, and says where what is wrong stands."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text

    def convert(self, value: Any, kind: type[Struct], place: tuple[str, ...]) -> Struct:
        """Check one object. `place` is the keys that lead to it."""
        if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
            raise Misconfigured(f"{self.where(place)}: give an object of keys and values")
        known = kind.__struct_fields__
        for key in value:
            if key not in known:
                close = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {close[0]}?" if close else f"valid are: {', '.join(known)}"
                raise Misconfigured(f"{self.where((*place, key))}: unknown key {key!r}; {hint}")
        try:
            return msgspec.convert(value, kind)
        except msgspec.ValidationError as error:
            what, _, inside = str(error).partition(" - at `$")
            key = inside.rstrip("`").strip(".").split(".")[0].split("[")[0]
            raise Misconfigured(f"{self.where((*place, key) if key else place)}: {what}") from error

    def check(self, place: tuple[str, ...], rule: Callable[[str], None], value: str) -> None:
        """Apply a rule that raises ValueError to the value at `place`."""
        try:
            rule(value)
        except ValueError as error:
            raise Misconfigured(f"{self.where(place)}: {error}") from error

    def where(self, place: tuple[str, ...]) -> str:
        """File, line and key."""
        line = _yaml_line(self._text, place) if self._path.suffix.lower() != ".toml" else _toml_line(self._text, place)
        found = f"{self._path}, line {line}" if line else str(self._path)
        return f"{found}, {'.'.join(place)}" if place else found


def _yaml_line(text: str, place: tuple[str, ...]) -> int | None:
    """Where the last key of `place` stands, or the last one that is there. JSON is YAML as far as this needs it."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, RecursionError):
        return None
    line = None
    for key in place:
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((name, value) for name, value in pairs if name.value == key), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line


def _toml_line(text: str, place: tuple[str, ...]) -> int | None:
    """The parser gives no positions: the first line that names the last key behind the table's. It is only a help."""
    lines = text.splitlines()
    at = None
    for key in place:
        found = next((number for number in range(at or 0, len(lines)) if key in lines[number]), None)
        if found is None:
            break
        at = found
    return None if at is None else at + 1
