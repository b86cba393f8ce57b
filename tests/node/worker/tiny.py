"""Tiny random models with a tokenizer of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    StableLmConfig,
    StableLmForCausalLM,
)

if TYPE_CHECKING:
    from pathlib import Path

TEXT = (
    "A mesh is made of peers. Every peer has a key and a name. A node runs models and a gateway lets clients in. "
    "The engine computes one step for all requests and says what came out. Numbers: 0 1 2 3 4 5 6 7 8 9. "
    "Grüße aus Köln, ça va bien, 你好世界, こんにちは, emoji 🙂🚀👩‍💻. "
)
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('unknown role ' + m['role']) }}{% endif %}"
    "<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
SIZES = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    # Larger than usual: random logits of ordinary size have near ties.
    "initializer_range": 0.3,
}


def make_tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|end|>", bos_token="<|endoftext|>", extra_special_tokens=["<|start|>"]
    )
    wrapped.chat_template = TEMPLATE
    return wrapped


KINDS: dict[str, Any] = {
    "llama": lambda ids: LlamaForCausalLM(LlamaConfig(**SIZES, **ids)),
    "qwen3": lambda ids: Qwen3ForCausalLM(Qwen3Config(**SIZES, **ids, head_dim=16)),
    "mistral": lambda ids: MistralForCausalLM(MistralConfig(**SIZES, **ids, sliding_window=None)),
    "mistral-window": lambda ids: MistralForCausalLM(MistralConfig(**SIZES, **ids, sliding_window=12)),
    # Its attention cannot be replaced.
    "stablelm": lambda ids: StableLmForCausalLM(StableLmConfig(**SIZES, **ids)),
}


def save_model(folder: Path, kind: str, tokenizer: Any) -> None:
    """Make a model directory; the same weights every time."""
    torch.manual_seed(sum(map(ord, kind)))
    ids = {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 0}
    KINDS[kind](ids).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
