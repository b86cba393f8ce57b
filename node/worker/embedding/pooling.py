"""How the vectors of an input's tokens become one, as the files of sentence-transformers say.

1. `modules.json` names the steps, `1_Pooling/config.json` the pooling. A step that is not known here is refused, never left out.
2. Without these files an encoder takes the mean of all tokens and a decoder its last one; both bring vectors to unit length.
3. Padding counts for nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch

from mesh.errors import Misconfigured

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

Mode = Literal["mean", "cls", "last", "max"]
MODULES = "modules.json"
_FLAGS: dict[str, Mode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
}
_NAMES: dict[str, Mode] = {"cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last"}
_NOT_KNOWN = ("pooling_mode_mean_sqrt_len_tokens", "pooling_mode_weightedmean_tokens")


@dataclass(frozen=True, kw_only=True)
class Pooling:
    """`prompt` is set before every text; `longest` is how many tokens the model was made for, None: as its configuration says."""

    mode: Mode
    normalize: bool = True
    prompt: str = ""
    longest: int | None = None

    def __str__(self) -> str:
        return f"{self.mode} {self.normalize} {self.prompt!r}"

    def pool(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """[inputs, tokens, dim] and how many tokens of each count, from the first on -> [inputs, dim] in float32."""
        hidden = hidden.float()
        if self.mode == "cls":
            return hidden[:, 0]
        if self.mode == "last":
            return hidden[torch.arange(len(hidden), device=hidden.device), lengths - 1]
        counts = (torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None])[..., None]
        if self.mode == "max":
            return hidden.masked_fill(~counts, float("-inf")).amax(1)
        return hidden.masked_fill(~counts, 0.0).sum(1) / lengths[:, None]

    def finish(self, vector: Tensor, dimensions: int | None) -> Tensor:
        """The vector as it is given out. A shortened one gets unit length again: the cut changed it."""
        if dimensions is not None and dimensions < len(vector):
            return torch.nn.functional.normalize(vector[:dimensions], dim=0)
        return torch.nn.functional.normalize(vector, dim=0) if self.normalize else vector


def pooling_of(path: Path, *, decoder: bool) -> Pooling:
    """What the directory says. Raises Misconfigured."""
    if not (path / MODULES).is_file():
        return Pooling(mode="last" if decoder else "mean")
    mode: Mode | None = None
    normalize = False
    for module in _modules(path):
        match str(module.get("type", "")).rpartition(".")[2]:
            case "Transformer":
                pass
            case "Pooling":
                mode = _mode(_read(path / str(module.get("path", "1_Pooling")) / "config.json"))
            case "Normalize":
                normalize = True
            case other:
                raise Misconfigured(f"{path}/{MODULES} has a step {other!r}, which is not known here; use another model")
    if mode is None:
        raise Misconfigured(f"{path}/{MODULES} names no pooling; copy the model's own files again")
    sizes = _read_if_there(path / "sentence_bert_config.json")
    return Pooling(mode=mode, normalize=normalize, prompt=_prompt(path), longest=sizes.get("max_seq_length"))


def _modules(path: Path) -> list[dict[str, Any]]:
    modules = json.loads((path / MODULES).read_bytes()) if (path / MODULES).is_file() else None
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise Misconfigured(f"{path}/{MODULES} is no list of steps; copy the model's own again")
    return modules


def _mode(config: dict[str, Any]) -> Mode:
    named = config.get("pooling_mode")
    if isinstance(named, str) and named in _NAMES:
        return _NAMES[named]
    chosen = [mode for flag, mode in _FLAGS.items() if config.get(flag)]
    if len(chosen) != 1 or any(config.get(flag) for flag in _NOT_KNOWN):
        raise Misconfigured("the model's pooling is none of mean, cls, max and lasttoken alone; use another model")
    return chosen[0]


def _prompt(path: Path) -> str:
    config = _read_if_there(path / "config_sentence_transformers.json")
    return str((config.get("prompts") or {}).get(config.get("default_prompt_name") or "", ""))


def _read_if_there(path: Path) -> dict[str, Any]:
    return _read(path) if path.is_file() else {}


def _read(path: Path) -> dict[str, Any]:
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{path} cannot be read: {error}; copy the model's own again") from error
    if not isinstance(config, dict):
        raise Misconfigured(f"{path} does not hold an object; copy the model's own again")
    return config
