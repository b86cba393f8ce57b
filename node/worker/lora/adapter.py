"""A LoRA adapter as PEFT lays it out: `adapter_config.json` and `adapter_model.safetensors`.

1. What is read is the plain kind: two matrices for each linear layer that is named, and a scale. Everything else (DoRA, biases,
   whole layers, embeddings) would change the result, so it is refused by name, never left out.
2. Pickles are never loaded.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
_KEY = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class Pair:
    """What is added to a layer's output: `up` (`down` x). `up` holds the scale already."""

    down: Tensor
    up: Tensor


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One adapter: a pair for each module, by the module's name in the model."""

    name: str
    pairs: dict[str, Pair]
    digest: str


def read_adapter(name: str, path: Path) -> Adapter:
    """Read and check a directory. Raises Misconfigured."""
    config = _config(path)
    _check_kind(path, config)
    if not (path / WEIGHTS).is_file():
        raise Misconfigured(f"{path} has no {WEIGHTS}; pickled adapters are never loaded, save it as safetensors")
    try:
        tensors = load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise Misconfigured(f"{path}/{WEIGHTS} cannot be read ({error}); fetch it again") from error
    sides: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _KEY.fullmatch(key.removeprefix(PREFIX))
        if found is None or tensor.ndim != 2:
            raise Misconfigured(f"{path}/{WEIGHTS} holds {key}, which is no part of a plain LoRA; it cannot be served")
        sides.setdefault(found["module"], {})[found["side"]] = tensor
    pairs = {module: _pair(path, module, both, config) for module, both in sides.items()}
    digest = hashlib.sha256((path / CONFIG).read_bytes() + (path / WEIGHTS).read_bytes()).hexdigest()
    return Adapter(name=name, pairs=pairs, digest=digest)


def _config(path: Path) -> dict[str, Any]:
    try:
        config = json.loads((path / CONFIG).read_bytes())
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{path}/{CONFIG} cannot be read: {error}; copy the adapter's own again") from error
    if not isinstance(config, dict):
        raise Misconfigured(f"{path}/{CONFIG} does not hold an object; copy the adapter's own again")
    return config


def _check_kind(path: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise Misconfigured(f"{path} is an adapter of the kind {config.get('peft_type')}; LORA can be served")
    wanted = [key for key in ("use_dora", "lora_bias", "fan_in_fan_out", "modules_to_save") if config.get(key)]
    wanted += ["bias"] if config.get("bias", "none") != "none" else []
    if wanted:
        raise Misconfigured(f"{path} uses {', '.join(wanted)}, which cannot be served; merge the adapter into its model")


def _pair(path: Path, module: str, both: dict[str, Tensor], config: dict[str, Any]) -> Pair:
    down, up = both.get("A"), both.get("B")
    if down is None or up is None or down.shape[0] != up.shape[1]:
        raise Misconfigured(f"{path}/{WEIGHTS}: the two matrices of {module} do not belong together; fetch it again")
    return Pair(down, up * _scale(module, down.shape[0], config))


def _scale(module: str, rank: int, config: dict[str, Any]) -> float:
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    own = (alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module))
    alpha = float(next(own, config.get("lora_alpha") or rank))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
