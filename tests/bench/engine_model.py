"""The model that engines are compared on: random parameters in the shape of Qwen3, made here, the same every time.

Random weights cost what trained ones do; their answers mean nothing. The tokenizer is trained on Python's own library.
"""

from __future__ import annotations

import random
import sysconfig
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 16384
CONTEXT = 4096
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


SIZES: dict[str, dict[str, int]] = {
    "88M": {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12, "head_dim": 64},
    "1B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 20, "num_attention_heads": 16, "head_dim": 128},
}


def save_model(folder: Path, size: str = "88M") -> None:
    """Write a model directory in bfloat16; does nothing where there is one."""
    if (folder / "config.json").exists():
        return
    tokenizer = _tokenizer()
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.bos_token_id,
        **SIZES[size],
    )
    tokenizer.save_pretrained(folder)
    Qwen3ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)


def prompts(count: int, *, length: int = 64, seed: int = 0) -> list[list[int]]:
    """Random prompts without special tokens; no two begin alike."""
    source = random.Random(f"{count} {length} {seed}")
    return [[source.randrange(300, VOCABULARY - 400) for _ in range(length)] for _ in range(count)]


def _tokenizer() -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library = Path(sysconfig.get_paths()["stdlib"])
    tokenizer.train([str(path) for path in sorted(library.glob("*.py"))], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", bos_token="<|endoftext|>")
    wrapped.chat_template = TEMPLATE
    return wrapped
