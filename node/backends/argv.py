"""The command lines of backends that are programs.

1. What a type's program is and how it takes its model, port and host is in `_PROGRAMS`; `command` replaces the program alone.
2. The backend listens where P is: on the node's `--host`. The operator's own `args` come last, so that they win.
3. Arguments of a list stay as they are; texts are split as a shell splits them. `{port}` in an argument is P.
"""

from __future__ import annotations

import os
import shlex
import shutil
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from node.backends.settings import BackendSettings


@dataclass(frozen=True, kw_only=True)
class _Program:
    """A server and the flags by which it takes what we tell it; "" where it takes none."""

    argv: tuple[str, ...]
    model: str = "--model"
    port: str = "--port"
    host: str = "--host"


_PROGRAMS = {
    "vllm": _Program(argv=("python3", "-m", "vllm.entrypoints.openai.api_server")),
    "sglang": _Program(argv=("python3", "-m", "sglang.launch_server"), model="--model-path"),
    "llama-cpp": _Program(argv=("llama-server",)),
    "infinilm": _Program(argv=("python3", "launch_server.py"), model="--model-path"),
    "infinilm-rust": _Program(argv=("xtask", "service"), model="", port="-p", host=""),
}
MODEL_KEYS = ("model", "path", "model_path", "config_file")


def child_argv(settings: BackendSettings, *, host: str, port: int) -> list[str]:
    """The command line. Raises Misconfigured when the settings give none."""
    own = [argument.replace("{port}", str(port)) for argument in arguments(settings)]
    _check_port(settings, own, port)
    if settings.kind == "command":
        return [*_command(settings), *own]
    program = _PROGRAMS[settings.kind]
    argv = [*(_command(settings) or program.argv)]
    argv += [word for word in (program.model, _model(settings)) if word]
    argv += [program.port, str(port)]
    if program.host:
        argv += [program.host, host]
    return argv + own


def child_environment(settings: BackendSettings) -> dict[str, str]:
    """The node's own variables, and those of the settings over them."""
    return {**os.environ, **settings.env}


def arguments(settings: BackendSettings) -> list[str]:
    """`args` as the program gets them. Raises Misconfigured."""
    return list(settings.args) if isinstance(settings.args, list) else _split(settings, "args", settings.args)


def check_program(settings: BackendSettings, argv: list[str]) -> None:
    """Raise Misconfigured unless the program and its folder are there."""
    if settings.work_dir is not None and not settings.work_dir.is_dir():
        raise Misconfigured(f"{settings.where('work_dir')}: there is no folder {settings.work_dir}; make it, or name another one")
    program = argv[0]
    if os.sep in program:
        found = os.access(os.path.join(settings.work_dir or "", program), os.X_OK)
    else:
        found = shutil.which(program, path=child_environment(settings).get("PATH")) is not None
    if not found:
        raise Misconfigured(f"{settings.where('command')}: there is no program {program!r}; install it, or give its full path")


def _command(settings: BackendSettings) -> list[str]:
    words = _split(settings, "command", settings.command)
    if settings.kind in ("command", "cli") and not words:
        raise Misconfigured(f"{settings.where('command')}: the type {settings.kind} needs a command; name the program to run")
    return words


def program_of(settings: BackendSettings) -> list[str]:
    """`command` and `args` together, for a program that listens nowhere. Raises Misconfigured."""
    return [*_command(settings), *arguments(settings)]


def _split(settings: BackendSettings, key: str, text: str) -> list[str]:
    try:
        return shlex.split(text)
    except ValueError as error:
        raise Misconfigured(f"{settings.where(key)}: cannot split {text[:100]!r}: {error}; close every quote") from error


def _model(settings: BackendSettings) -> str:
    given = [key for key in MODEL_KEYS if getattr(settings, key)]
    if len(given) > 1:
        raise Misconfigured(f"{settings.where(given[1])}: {' and '.join(given)} both name the model; leave one of them out")
    if not given:
        wanted = "path" if settings.kind.startswith("infinilm") else "model"
        raise Misconfigured(f"{settings.where(wanted)}: the type {settings.kind} needs {wanted}; say what it shall serve")
    return str(getattr(settings, given[0]))


def _check_port(settings: BackendSettings, own: list[str], port: int) -> None:
    """A server that listens elsewhere would never be found ready."""
    for flag, value in pairwise([*own, ""]):
        name, _, joined = flag.partition("=")
        said = joined or value
        if name == "--port" and said.isdecimal() and int(said) != port and not settings.url:
            raise Misconfigured(
                f"{settings.where('args')}: --port {said} is not P, which is {port}; write {{port}} there, or give the node"
                f" --port {said}"
            )
