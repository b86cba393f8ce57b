"""One tiny random model of each architecture, with the peculiarities of its attention switched on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import transformers

if TYPE_CHECKING:
    from pathlib import Path

WINDOW = 12
SIZES: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
ALTERNATING = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", {"use_sliding_window": True, "max_window_layers": 1, "sliding_window": WINDOW}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral-window": ("Mistral", {"sliding_window": WINDOW}),
    "gemma2-softcap": (
        "Gemma2",
        {**ALTERNATING, "head_dim": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": ("Gemma3Text", {**ALTERNATING, "head_dim": 8}),
    "phi3-window": ("Phi3", {"sliding_window": WINDOW}),
    "granite": ("Granite", {"attention_multiplier": 0.3, "residual_multiplier": 0.5, "logits_scaling": 2.0}),
    "olmo2": ("Olmo2", {}),
    "mixtral": ("Mixtral", LOCAL_EXPERTS),
    "qwen2-moe": ("Qwen2Moe", {**EXPERTS, "shared_expert_intermediate_size": 24}),
    "qwen3-moe": ("Qwen3Moe", {**EXPERTS, "head_dim": 8}),
    "gpt-oss-sinks": (
        "GptOss",
        {**LOCAL_EXPERTS, **ALTERNATING, "head_dim": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
    ),
    "cohere2": ("Cohere2", ALTERNATING),
    "smollm3": ("SmolLM3", {}),
}
"""By name: transformers' class and what its configuration has beside SIZES."""

GENERATED: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("Bloom", {"n_head": 4, "n_layer": 2}),
    "falcon": ("Falcon", {}),
    "stablelm": ("StableLm", {}),
}
"""Those that slot attention leaves to `generate`."""


def build(kind: str) -> Any:
    """A model with the same weights every time."""
    name, peculiar = {**EXACT, **GENERATED}[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **peculiar})
    torch.manual_seed(sum(map(ord, kind)))
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval()
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(".sinks"):
            torch.nn.init.normal_(parameter, mean=1.0)
    return model


def save(folder: Path, kind: str, tokenizer: Any, **options: Any) -> Any:
    """Make a model directory; returns the model."""
    model = build(kind)
    model.save_pretrained(folder, **options)
    tokenizer.save_pretrained(folder)
    return model
