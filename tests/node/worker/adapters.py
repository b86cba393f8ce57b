"""Random LoRA adapters in PEFT's layout, and models with them merged in."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file

if TYPE_CHECKING:
    from pathlib import Path

TARGETS = ("q_proj", "v_proj", "down_proj")


def save_adapter(
    folder: Path, model: Any, *, seed: int = 1, rank: int = 4, targets: tuple[str, ...] = TARGETS, **config: Any
) -> None:
    """Make an adapter directory that changes the named layers of a model."""
    folder.mkdir()
    torch.manual_seed(seed)
    tensors = {}
    for name, module in model.named_modules():
        if name.rpartition(".")[2] in targets:
            tensors[f"base_model.model.{name}.lora_A.weight"] = torch.randn(rank, module.in_features) * 0.3
            tensors[f"base_model.model.{name}.lora_B.weight"] = torch.randn(module.out_features, rank) * 0.3
    save_file(tensors, folder / "adapter_model.safetensors")
    whole = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": 2 * rank,
        "target_modules": list(targets),
        "bias": "none",
        "base_model_name_or_path": "base",
        **config,
    }
    (folder / "adapter_config.json").write_text(json.dumps(whole))


def merged(model: Any, folder: Path, *, scale: float = 2.0, scales: dict[str, float] | None = None) -> Any:
    """A copy of the model with the adapter in its weights."""
    from safetensors.torch import load_file

    copied = copy.deepcopy(model)
    tensors = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for key in tensors:
            if key.endswith(".lora_A.weight"):
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
                by = (scales or {}).get(name.rpartition(".")[2], scale)
                weight = copied.get_submodule(name).weight
                weight += by * (tensors[key.replace("lora_A", "lora_B")] @ tensors[key])
    return copied
