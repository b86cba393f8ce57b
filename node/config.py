"""Every key of `mesh-node`: flags, environment and file alike."""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003 - the schema is read at run time
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec

from mesh.config import CommonConfig, Option
from node.backends.settings import BackendSettings  # noqa: TC001 - the schema is read at run time
from node.multiplexer.settings import MultiplexerSettings

_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


def _check_device(device: str) -> None:
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"{device!r} is not a device; give auto, cpu, cuda or cuda:N")


def _check_registry_url(url: str) -> None:
    parts = urlsplit(url)
    if url and not (parts.scheme in ("http", "https") and parts.hostname):
        raise ValueError(f"{url!r} is not the address of a gateway; it looks like http://192.0.2.1:8000")


class MultiplexerTable(MultiplexerSettings, frozen=True, kw_only=True):
    """`[multiplexer]` of the file: all models of the node that can sleep share one accelerator. `origin` is where it stands."""

    origin: str = ""


class NodeConfig(CommonConfig, frozen=True, kw_only=True):
    """What a node can be told. Without `model` and `backend` it serves the demo model."""

    model: Annotated[
        dict[str, str],
        Option(help="A model to serve: its name and its Hugging Face directory, or a LoRA adapter's.", metavar="ID=PATH"),
    ] = msgspec.field(default_factory=dict)
    device: Annotated[str, Option(help="Where models run: auto, cpu, cuda or cuda:N.", check=_check_device)] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Option(help="How weights are computed; auto is the checkpoint's own.")
    ] = "auto"
    weights: Annotated[
        Literal["auto", "int8"],
        Option(help="How weights are kept: auto is as they are computed, int8 rounds those of linear layers, on a CPU."),
    ] = "auto"
    threads: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=4096)] | None,
        Option(help="Threads that compute a model on a CPU.", default_help="those that were found best when it was loaded"),
    ] = None
    slots: Annotated[
        Annotated[int, msgspec.Meta(ge=1, le=4096)] | None,
        Option(help="Requests computed at the same time, per model.", default_help="the engine's choice"),
    ] = None
    context: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None,
        Option(help="Tokens of prompt and answer together.", default_help="what model and memory allow"),
    ] = None
    cache_mib: Annotated[
        Annotated[int, msgspec.Meta(ge=1)] | None,
        Option(help="Most memory in MiB for a model's keys and values.", default_help="half of what is free beside the weights"),
    ] = None
    host: Annotated[str, Option(help="The address of the HTTP ports; one that others reach needs --insecure.")] = "127.0.0.1"
    port: Annotated[
        int,
        msgspec.Meta(ge=0, le=65534),
        Option(help="P: OpenAI HTTP; P+1 tells health, models and info. 0 takes a free pair."),
    ] = 8100
    insecure: Annotated[bool, Option(help="Allow --host to open HTTP ports that ask for no key to others.")] = False
    api_keys: Annotated[
        Path | None,
        Option(help="A TOML file of the keys that P and P+1 ask for: [[key]] with name, hash and scopes.", metavar="FILE"),
    ] = None
    registry_url: Annotated[
        str,
        Option(help="A gateway to find the mesh through, as http://HOST:8000.", metavar="URL", check=_check_registry_url),
    ] = ""
    max_restarts: Annotated[
        int, msgspec.Meta(ge=0), Option(help="Restarts in a row after which a backend is given up.", table="babysitter")
    ] = 10_000
    restart_delay: Annotated[
        float,
        msgspec.Meta(gt=0),
        Option(
            help="Seconds before the second restart in a row; the first is at once, later ones wait longer, up to a minute.",
            table="babysitter",
            metavar="SECONDS",
        ),
    ] = 5.0
    heartbeat_interval: Annotated[
        float,
        msgspec.Meta(ge=1),
        Option(help="Seconds between looks at --registry-url while nobody is linked.", table="babysitter", metavar="SECONDS"),
    ] = 30.0
    check_interval: Annotated[
        float,
        msgspec.Meta(gt=0),
        Option(
            help="Seconds between looks at a server that the node does not run itself.",
            environment=("BACKEND_HEALTH_CHECK_INTERVAL",),
            table="babysitter",
            metavar="SECONDS",
        ),
    ] = 60.0
    auto_discover: Annotated[
        bool,
        Option(
            help="Serve what other model servers of this machine have, found at their usual ports, as they come and go.",
            environment=("HF_AUTO_DISCOVER",),
        ),
    ] = False
    multiplexer_file: Annotated[
        Path | None,
        Option(
            help="Models that share one accelerator, with the hooks that wake them and put them to sleep; a --config-file with a"
            " table of models is one too.",
            metavar="FILE",
        ),
    ] = None
    switch_policy: Annotated[
        str,
        Option(
            help="Let all models of this node share one accelerator, one awake at a time, under this policy: fifo, cost_aware,"
            " time_slice or an installed one.",
            metavar="NAME",
            default_help="that of --multiplexer-file or [multiplexer], else all models are awake",
        ),
    ] = ""
    multiplexer: Annotated[
        list[MultiplexerTable], Option(help="How the models of this node share one accelerator: the table [multiplexer].")
    ] = msgspec.field(default_factory=list)
    backend: Annotated[list[BackendSettings], Option(help="What runs models, one for each [[backend]] of the file.")] = (
        msgspec.field(default_factory=list)
    )

    @property
    def service_type(self) -> str:
        """What the node as a whole is called on P+1: the type of its only backend, or `several`."""
        return self.backend[0].kind if len(self.backend) == 1 else "several" if self.backend else "torch"
