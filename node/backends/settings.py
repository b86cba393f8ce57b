"""What a `[backend]` or `[[backend]]` of the file, or flags for the only one, say of one backend.

1. Every key is here, whatever types use it; `TYPES` says which do, and a key that a type has no use for is refused.
2. A secret is never a value: `api_key_env` and `api_key_file` say where it is.
3. None and "" mean that nothing was said; what stands for it is in the key's help.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import msgspec

from mesh.config import Option
from node.multiplexer.memory import check_size

if TYPE_CHECKING:
    from collections.abc import Mapping

_COMMON = frozenset({"type", "id", "models", "aliases", "context_length", "weight", "port", "shared", "memory"})
_HOOKS = frozenset({"wake", "sleep", "alive"})
_RESTARTS = frozenset({"max_restarts", "restart_delay"})
_PROCESS = frozenset({"args", "work_dir", "env", "grace"})
_ANSWERS = frozenset({"upstream_model", "tasks", "progress_timeout", "max_requests", "api_key_env", "api_key_file", "continues"})
_CHILD = _COMMON | _RESTARTS | _PROCESS | _ANSWERS | {"command", "start_timeout"}

TYPES: Mapping[str, frozenset[str]] = {
    "torch": _COMMON | _RESTARTS | {"path", "sleep_level", "weights"},
    "mock": _COMMON | {"args", "knobs"},
    "command": _CHILD | {"url"},
    "vllm": _CHILD | {"model", "path", "sleep_level"},
    "sglang": _CHILD | {"model", "path"},
    "llama-cpp": _CHILD | {"model", "path"},
    "infinilm": _CHILD | {"path", "model", "model_path"},
    "infinilm-rust": _CHILD | {"path", "config_file"},
    "openai": _COMMON | _ANSWERS | {"url"},
    "hooks": (_COMMON - {"shared"})
    | _HOOKS
    | {f"{hook}_timeout_secs" for hook in _HOOKS}
    | {"url", "upstream_model", "tasks", "api_key_env", "api_key_file"},
    "anthropic": _COMMON | (_ANSWERS - {"tasks"}) | {"url"},
    "cli": _COMMON | _PROCESS | {"command", "request_timeout", "max_output", "max_requests"},
}
"""By type, in lower case, the keys that it has a use for."""

CONTINUE = frozenset({"vllm", "sglang", "llama-cpp", "anthropic"})
"""Types whose servers are known to go on with a last message of the assistant."""

_FLAGS = {"type": "--service-type", "command": "--command", "args": "--args", "path": "--path"}
Seconds = Annotated[float, msgspec.Meta(gt=0)]


def check_type(name: str) -> None:
    """Raise ValueError unless there is such a type; case does not matter."""
    if name.lower() not in TYPES:
        raise ValueError(f"{name!r} is not a service type; give {', '.join(list(TYPES)[:-1])} or {list(TYPES)[-1]}")


class BackendSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One backend as it was configured. `origin` is where in the file, or empty."""

    type: Annotated[
        str,
        Option(
            help=f"What runs the models: {', '.join(TYPES)}; case does not matter.",
            flag=_FLAGS["type"],
            environment=("INFERMESH_SERVICE_TYPE",),
            check=check_type,
            default_help="torch",
        ),
    ] = ""
    id: Annotated[str, Option(help="Tells this backend from others of the file.", default_help="its type, and a number")] = ""
    models: Annotated[
        list[str], Option(help="What the models are called in the mesh.", metavar="ID", default_help="as the backend lists them")
    ] = []
    aliases: Annotated[list[str], Option(help="Further names of the only model.", metavar="ID")] = []
    upstream_model: Annotated[
        str,
        Option(
            help="What the server itself calls the only model; it is then asked for a token, not for its list, to see it ready."
        ),
    ] = ""
    tasks: Annotated[
        list[Literal["chat", "completion", "embedding"]],
        Option(help="What its models can do.", metavar="TASK", default_help="chat and completion"),
    ] = []
    command: Annotated[
        str,
        Option(
            help="For command and cli: the program, split as a shell does; for others, what stands for their usual program.",
            flag=_FLAGS["command"],
            environment=("INFERMESH_COMMAND",),
        ),
    ] = ""
    args: Annotated[
        str | list[str],
        Option(
            help="The program's arguments, {port} is P; a text is split as a shell does, a list of the file is taken as it is."
            " For mock: the models and knobs, as in 'model-a,model-b;tokens_per_second=50;first_token_ms=20'.",
            flag=_FLAGS["args"],
            environment=("INFERMESH_ARGS",),
        ),
    ] = ""
    work_dir: Annotated[Path | None, Option(help="Where the program runs.", default_help="the node's own")] = None
    env: Annotated[
        dict[str, str], Option(help="Environment variables of the program, beside the node's own.", metavar="NAME=VALUE")
    ] = msgspec.field(default_factory=dict)
    model: Annotated[str, Option(help="For vllm, sglang and llama-cpp: the model, as the program takes it.")] = ""
    path: Annotated[
        str,
        Option(
            help="A model directory, for torch served under the folder's name; for vllm, sglang, llama-cpp and InfiniLM the"
            " model; for InfiniLM-Rust its configuration file.",
            flag=_FLAGS["path"],
            environment=("INFERMESH_PATH",),
        ),
    ] = ""
    weights: Annotated[
        Literal["auto", "int8"] | None,
        Option(help="For torch: how weights are kept, as in --weights.", default_help="--weights"),
    ] = None
    model_path: Annotated[str, Option(help="For InfiniLM: another name of path.")] = ""
    config_file: Annotated[str, Option(help="For InfiniLM-Rust: another name of path.")] = ""
    url: Annotated[
        str, Option(help="Where the server answers.", default_help="for command port P of this machine; the provider's own")
    ] = ""
    api_key_env: Annotated[
        str,
        Option(
            help="The environment variable that holds the server's key.",
            default_help="OPENAI_API_KEY, ANTHROPIC_API_KEY or HF_API_TOKEN, for the provider's own address alone",
        ),
    ] = ""
    api_key_file: Annotated[Path | None, Option(help="A file that holds nothing but the server's key.")] = None
    port: Annotated[
        Annotated[int, msgspec.Meta(ge=0, le=65534)] | None,
        Option(help="P of this backend; P+1 is its supervisor.", default_help="--port, then in steps of two"),
    ] = None
    max_restarts: Annotated[
        Annotated[int, msgspec.Meta(ge=0)] | None,
        Option(help="Restarts in a row after which it is given up.", default_help="--max-restarts"),
    ] = None
    restart_delay: Annotated[
        Seconds | None, Option(help="Seconds before its second restart in a row.", default_help="--restart-delay")
    ] = None
    start_timeout: Annotated[Seconds, Option(help="Seconds that it may take until it answers.", metavar="SECONDS")] = 600.0
    progress_timeout: Annotated[
        Seconds, Option(help="Seconds of silence after which it counts as hung and is started anew.", metavar="SECONDS")
    ] = 60.0
    grace: Annotated[Seconds, Option(help="Seconds between SIGTERM and SIGKILL.", metavar="SECONDS")] = 10.0
    request_timeout: Annotated[Seconds, Option(help="For cli: seconds that one answer may take.", metavar="SECONDS")] = 300.0
    max_output: Annotated[
        Annotated[int, msgspec.Meta(ge=1)], Option(help="For cli: bytes that one answer may have.", metavar="BYTES")
    ] = 1024 * 1024
    max_requests: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=4096)] | None,
        Option(help="Requests under way on it at once; further ones are told that it is busy.", default_help="256; for cli 4"),
    ] = None
    continues: Annotated[
        bool | None,
        Option(
            help="Its server goes on with a last message of the assistant, and with a prompt as it is: such servers go on with"
            " each other's answers when one is lost.",
            default_help="true for vllm, sglang, llama-cpp and anthropic",
        ),
    ] = None
    context_length: Annotated[
        Annotated[int, msgspec.Meta(ge=0)], Option(help="Tokens of prompt and answer together, where the server does not tell.")
    ] = 0
    weight: Annotated[
        Annotated[float, msgspec.Meta(gt=0, le=1000)], Option(help="Its share under weighted_round_robin, relative to others.")
    ] = 1.0
    knobs: Annotated[
        dict[str, str], Option(help="For mock: how it behaves, as in tokens_per_second=50.", metavar="KNOB=VALUE")
    ] = msgspec.field(default_factory=dict)
    shared: Annotated[
        bool, Option(help="Whether its models share the node's accelerator, where the node has models that take turns.")
    ] = True
    memory: Annotated[
        str,
        Option(
            help="What each of its models takes of the accelerator while it is awake, as 18GiB; see memory_budget.",
            check=check_size,
            default_help="as measured for torch, else unknown",
        ),
    ] = ""
    sleep_level: Annotated[
        Literal[1, 2] | None,
        Option(
            help="For torch and vllm, how deep a model sleeps that takes turns: 1, its process keeps the weights in the host's"
            " memory and wakes fast; 2, its process ends.",
            default_help="2 for torch, 1 for vllm",
        ),
    ] = None
    wake: Annotated[
        str,
        Option(
            help="For hooks: a path or a script for sh -c that returns with 0 once the model serves; INFERMESH_MODEL and"
            " LLMUX_MODEL tell which."
        ),
    ] = ""
    sleep: Annotated[str, Option(help="For hooks: the same, which returns with 0 once the accelerator is free.")] = ""
    alive: Annotated[str, Option(help="For hooks: the same, which returns with 0 while the model is awake and well.")] = ""
    wake_timeout_secs: Annotated[Seconds, Option(help="Longest that wake may take; then it is ended.")] = 600.0
    sleep_timeout_secs: Annotated[Seconds, Option(help="Longest that sleep may take.")] = 120.0
    alive_timeout_secs: Annotated[Seconds, Option(help="Longest that alive may take; then it is a no.")] = 10.0
    origin: str = ""

    @property
    def kind(self) -> str:
        """The type in lower case."""
        return self.type.lower() or "torch"

    @property
    def goes_on(self) -> bool:
        """Whether its server goes on behind a text, as was said or is known of the type."""
        return self.kind in CONTINUE if self.continues is None else self.continues

    def where(self, key: str) -> str:
        """The key as an error names it."""
        return f"{self.origin}, backend.{key}" if self.origin else _FLAGS.get(key, "--backend-" + key.replace("_", "-"))

    @property
    def said(self) -> list[str]:
        """The keys that were given."""
        defaults = BackendSettings()
        return [name for name in self.__struct_fields__ if name != "origin" and getattr(self, name) != getattr(defaults, name)]
