"""The decoder of our own against transformers' modules."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    GemmaConfig,
    GemmaForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from node.worker.attention import Piece, StepContext
from node.worker.cache.arena import Arena, ArenaShape
from node.worker.fused.decoder import Decoder, Unknown, check

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "llama 3 positions": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=LLAMA3)),
    "dynamic positions": lambda: LlamaForCausalLM(
        LlamaConfig(**SIZES, rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0})
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)),
    "qwen 2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen 2 with windows": lambda: Qwen2ForCausalLM(
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=5, max_window_layers=1)
    ),
    "qwen 3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
    "qwen 3, tied": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True)),
}


def whole_prompt(model: Any, decoder: Decoder, tokens: torch.Tensor) -> torch.Tensor:
    config, count = model.config, len(tokens)
    heads = config.num_attention_heads
    dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    shape = ArenaShape(layers=config.num_hidden_layers, tokens=count, kv_heads=config.num_key_value_heads, head_dim=dim)
    places = torch.arange(count)
    arena = Arena(shape, dtype=model.dtype, device=model.device)
    step = StepContext(arena=arena, places=places, positions=places, groups=[], pieces=[Piece(0, 0, count, 0)])
    return decoder(tokens, step, places)


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_logits_are_those_of_the_modules(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(4)
    model = MODELS[name]().to(dtype).eval()
    for parameter in model.parameters():
        # Norms and biases begin as ones and zeros, which would hide a mistake.
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.7, 0.3)
    tokens = torch.arange(3, 27)
    with torch.inference_mode():
        expected = model(tokens[None]).logits[0]
        found = whole_prompt(model, Decoder(model), tokens)
    # 16 bits are rounded at other places; the spread of these logits is around 30.
    bound = 1e-3 if dtype == torch.float32 else 0.05 * float(expected.max() - expected.min())
    torch.testing.assert_close(found, expected, atol=bound, rtol=0)


def test_the_weights_are_taken_over() -> None:
    model = MODELS["llama"]()
    Decoder(model)
    assert sum(each.weight.numel() for each in model.modules() if isinstance(each, torch.nn.Linear)) == 0


def foreign_module() -> Any:
    model = MODELS["llama"]()
    model.model.layers[1].mlp.up_proj = torch.nn.Sequential(model.model.layers[1].mlp.up_proj)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: GemmaForCausalLM(GemmaConfig(**SIZES, head_dim=8)), "GemmaForCausalLM is not among"),
        (lambda: LlamaForCausalLM(LlamaConfig(**SIZES, hidden_act="gelu")), "activation is gelu"),
        (foreign_module, "Sequential"),
    ],
    ids=["class", "activation", "module"],
)
def test_others_are_refused_untouched(make: Any, reason: str) -> None:
    model = make()
    before = sum(parameter.numel() for parameter in model.parameters())
    with pytest.raises(Unknown, match=reason):
        Decoder(model)
    with pytest.raises(Unknown):
        check(model)
    assert sum(parameter.numel() for parameter in model.parameters()) == before
