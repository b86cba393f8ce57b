"""Every key of `mesh-node`: flags, environment and file alike."""

from __future__ import annotations

import re
from pathlib import Path  # noqa: TC003 - the schema is read at run time
from typing import Annotated, Literal

import msgspec

from mesh.config import CommonConfig, Option

SERVICE_TYPES = ("torch", "mock")
_LATER_TYPES = ("command", "vllm", "infinilm", "infinilm-rust")
_DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


def _check_device(device: str) -> None:
    if not _DEVICE.fullmatch(device):
        raise ValueError(f"{device!r} is not a device; give auto, cpu, cuda or cuda:N")


def _check_service_type(name: str) -> None:
    if name.lower() in _LATER_TYPES:
        raise ValueError(f"the service type {name!r} is not there yet; this version has {' and '.join(SERVICE_TYPES)}")
    if name.lower() not in SERVICE_TYPES:
        raise ValueError(f"{name!r} is not a service type; give {' or '.join(SERVICE_TYPES)}")


class NodeConfig(CommonConfig, frozen=True, kw_only=True):
    """What a node can be told. Without `model` and `service_type` it serves the demo model."""

    model: Annotated[
        dict[str, str],
        Option(help="A model to serve: its name and its Hugging Face directory, or a LoRA adapter's.", metavar="ID=PATH"),
    ] = msgspec.field(default_factory=dict)
    device: Annotated[str, Option(help="Where models run: auto, cpu, cuda or cuda:N.", check=_check_device)] = "auto"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"], Option(help="How weights are computed; auto is the checkpoint's own.")
    ] = "auto"
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
    insecure: Annotated[bool, Option(help="Allow --host to open the HTTP ports, which ask for no key, to others.")] = False
    service_type: Annotated[
        str,
        Option(
            help="What runs the models: torch (built in) or mock (made-up words, for tests).",
            check=_check_service_type,
            default_help="torch",
        ),
    ] = ""
    args: Annotated[
        str,
        Option(help="For mock: the models and knobs, as in 'model-a,model-b;tokens_per_second=50;first_token_ms=20'."),
    ] = ""
    path: Annotated[Path | None, Option(help="For torch: a model directory, served under the folder's name.")] = None
    max_restarts: Annotated[int, msgspec.Meta(ge=0), Option(help="Restarts in a row after which a model is given up.")] = 10_000
