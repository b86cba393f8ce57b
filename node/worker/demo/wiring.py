"""Where copying starts from: heads that a small model otherwise needs very long to find.

1. In layer 0, one head looks at the token before and notes it beside each token, in features kept free for that.
2. In layer 1, some heads look for a place whose note is the current token, and propose the token that stands there.
3. This is only where training begins: every number stays free to change.
"""

import torch
from transformers import LlamaForCausalLM

CONSTANT = 4.0  # the value of feature 0 of every token, in standard deviations: what a head sees that ignores the token
SHARPNESS = 2.5
MATCH = 1.5
PROPOSAL = 0.5
MATCHING_HEADS = 4
FAST = 3  # rotary features that tell neighbours apart
SLOW = 0.02  # rotary features that turn by less than this (radians a token) still match over a whole chat


def wire_copying(model: LlamaForCausalLM) -> None:
    """Set the copying heads of a fresh model."""
    size = model.config.head_dim
    with torch.no_grad():
        embedding = model.model.embed_tokens.weight
        deviation = embedding.std().item()
        embedding[:, : size + 1] = 0
        embedding[:, 0] = CONSTANT * deviation
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        noted = _orthonormal(model)
        _note_the_token_before(model, noted, deviation)
        for head in range(MATCHING_HEADS):
            _propose_what_followed(model, head, noted, deviation)


def _note_the_token_before(model: LlamaForCausalLM, noted: torch.Tensor, deviation: float) -> None:
    attention, size = model.model.layers[0].self_attn, model.config.head_dim
    turn = model.model.rotary_emb.inv_freq[:FAST]
    query, key = attention.q_proj.weight[:size], attention.k_proj.weight[:size]
    query.zero_()
    key.zero_()
    # A query that is turned back by one token meets the key of the token before at the angle zero.
    query[:FAST, 0] = SHARPNESS * torch.cos(turn)
    query[size // 2 : size // 2 + FAST, 0] = -SHARPNESS * torch.sin(turn)
    key[:FAST, 0] = SHARPNESS
    attention.v_proj.weight[:size] = noted
    attention.o_proj.weight[1 : size + 1, :size] = deviation * torch.eye(size)


def _propose_what_followed(model: LlamaForCausalLM, head: int, noted: torch.Tensor, deviation: float) -> None:
    attention, size = model.model.layers[1].self_attn, model.config.head_dim
    rows = slice(head * size, (head + 1) * size)
    query, key = attention.q_proj.weight[rows], attention.k_proj.weight[rows]
    query.zero_()
    key.zero_()
    slow = (model.model.rotary_emb.inv_freq < SLOW).nonzero().flatten()
    slots = torch.cat([slow, slow + size // 2])
    compared = torch.randperm(size)[: len(slots)]
    query[slots] = MATCH * noted[compared]
    key[slots, 1 + compared] = MATCH
    proposal = _orthonormal(model)
    attention.v_proj.weight[rows] = proposal
    attention.o_proj.weight[:, rows] = PROPOSAL * deviation * proposal.T


def _orthonormal(model: LlamaForCausalLM) -> torch.Tensor:
    """Return as many directions as a head has features, all of them in the part of the embedding that tells tokens apart."""
    size = model.config.head_dim
    directions = torch.linalg.qr(torch.randn(model.config.hidden_size - size - 1, size)).Q.T
    return torch.nn.functional.pad(directions, (size + 1, 0))
