"""`python to_gguf.py MODEL FILE [mean]`: a Llama or Qwen3 model directory in bfloat16 as a GGUF file, for llama.cpp.

With `mean`, its embeddings are the mean over their tokens. Needs gguf and numpy. The tokenizer must be byte-level BPE, cut as
GPT-2's.
"""

from __future__ import annotations

import json
import struct
import sys
from pathlib import Path

import gguf
import numpy as np

NAMES = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}
LAYER = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


def in_pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's Llama turns them: the two halves of each head interleaved."""
    halves = values.reshape(heads, 2, -1, values.shape[1])
    return halves.swapaxes(1, 2).reshape(values.shape)


def tensors(path: Path) -> dict[str, np.ndarray]:
    """Of a safetensors file in bfloat16, as 32-bit numbers."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            assert entry["dtype"] == "BF16", name
            begin, end = (8 + size + offset for offset in entry["data_offsets"])
            halves = np.frombuffer(data[begin:end], dtype=np.uint16)
            found[name] = (halves.astype(np.uint32) << 16).view(np.float32).reshape(entry["shape"])
    return found


def main() -> None:
    folder, target = Path(sys.argv[1]), sys.argv[2]
    config = json.loads((folder / "config.json").read_text())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    writer = gguf.GGUFWriter(target, config["model_type"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    if sys.argv[3:] == ["mean"]:
        writer.add_pooling_type(gguf.PoolingType.MEAN)
    spelled = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    special = {entry["id"] for entry in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([spelled.get(number, f"[{number}]") for number in range(config["vocab_size"])])
    writer.add_token_types([3 if number in special else 1 for number in range(config["vocab_size"])])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    template = folder / "chat_template.jinja"
    if template.exists():
        writer.add_chat_template(template.read_text())
    kind = gguf.GGMLQuantizationType.BF16
    for name, values in tensors(folder / "model.safetensors").items():
        place = NAMES.get(name)
        if place is None:
            _, _, number, *parts, _ = name.split(".")
            layer = LAYER[".".join(parts)]
            place = f"blk.{number}.{layer}.weight"
            if config["model_type"] == "llama" and layer in HEADS:
                values = in_pairs(values, config[HEADS[layer]])
        if values.ndim == 1:
            writer.add_tensor(place, values)
        else:
            writer.add_tensor(place, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
