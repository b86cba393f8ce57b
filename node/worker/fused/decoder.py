"""Llama, Mistral, Qwen 2 and Qwen 3 computed straight from their weights.

1. It is the modules' own arithmetic in fewer calls: queries, keys and values are one product; activation, gate and residual sums
   happen inside the products; norms and rotation touch queries and keys together. What is left out is transformers' bookkeeping.
2. Only models that were read and compared are taken, by the names of their classes; everything that differs from what was read is
   refused as `Unknown`. `node.worker.suitability.check_model` compares the logits at each load.
3. Building it takes the weights out of the model's modules, layer by layer: memory for one layer is needed twice.
4. Positions are turned into cosines and sines by the model's own module, whatever scaling it has; once for each position, unless
   the scaling depends on how long the sequence is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from node.worker.fused.kernels import Attention, Heads, TorchKernels, Turn
from node.worker.fused.layers import Layer, Layers
from node.worker.fused.linear import Own

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    from node.worker.attention import StepContext
    from node.worker.fused.kernels import Kernels
    from node.worker.fused.layers import Through
    from node.worker.fused.linear import Linear, Products

CLASSES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class Unknown(Exception):
    """The model is not one of those that were read."""


class Decoder:
    """Computes a step: a `node.worker.runner.Forward`. Raises Unknown before it has touched the model."""

    def __init__(
        self,
        model: Any,
        products: Products | None = None,
        kernels: Kernels | None = None,
        through: Callable[[Layers], Through] | None = None,
    ) -> None:
        """`products`: of which kind; with the weights as they are when left out. `kernels`: torch's when left out.

        `through`: a faster way through the layers.
        """
        check(model)
        self._products = products or Own()
        self._kernels = kernels or TorchKernels()
        config, body = model.config, model.model
        self._heads = heads_of(model)
        self._epsilon = config.rms_norm_eps
        self._embedding: Tensor = body.embed_tokens.weight.detach()
        self._turns = Turns(body.rotary_emb, self._embedding)
        self._norm: Tensor = body.norm.weight.detach()
        self._head = self._products.linear(model.lm_head.weight)
        made = [self._layer(number, layer) for number, layer in enumerate(body.layers)]
        layers = Layers(made, self._kernels, self._epsilon)
        self._layers = through(layers) if through else layers
        _strip([model.lm_head])

    def __call__(self, tokens: Tensor, step: StepContext, keep: Tensor) -> Tensor:
        """Logits [keep, vocabulary]."""
        return self._head(self.hidden(tokens, step, keep))

    def hidden(self, tokens: Tensor, step: StepContext, keep: Tensor) -> Tensor:
        """What the head sees [keep, dim]."""
        rows = functional.embedding(tokens, self._embedding)
        rows = self._layers(rows, self._turns.at(step.positions), step)
        return self._kernels.norm(rows[keep], self._norm, self._epsilon)

    def _layer(self, number: int, layer: Any) -> Layer:
        attention, mlp = layer.self_attn, layer.mlp
        made = Layer(
            before_attention=layer.input_layernorm.weight.detach(),
            projection=self._joined([attention.q_proj, attention.k_proj, attention.v_proj]),
            attention=Attention(
                layer=number,
                heads=self._heads,
                norm=self._head_norm(attention),
                epsilon=self._epsilon,
                scaling=attention.scaling,
                window=_window(attention),
            ),
            output=self._joined([attention.o_proj]),
            before_mlp=layer.post_attention_layernorm.weight.detach(),
            gated=self._products.gated(mlp.gate_proj, mlp.up_proj),
            down=self._joined([mlp.down_proj]),
        )
        _strip(module for module in layer.modules() if isinstance(module, nn.Linear))
        return made

    def _joined(self, modules: Sequence[nn.Linear]) -> Linear:
        """Several products of the same rows as one."""
        weights: list[Tensor] = [module.weight for module in modules]
        biases: list[Tensor | None] = [module.bias for module in modules]
        bias = torch.cat([each for each in biases if each is not None]) if biases[0] is not None else None
        return self._products.linear(weights[0] if len(weights) == 1 else torch.cat(weights), bias)

    def _head_norm(self, attention: Any) -> Tensor | None:
        if not hasattr(attention, "q_norm"):
            return None
        heads = self._heads
        rows = [attention.q_norm.weight.expand(heads.queries, -1), attention.k_norm.weight.expand(heads.keys, -1)]
        return torch.cat(rows).detach()


class Turns:
    """How heads are rotated at each position."""

    def __init__(self, rotary: Any, like: Tensor) -> None:
        self._rotary = rotary
        self._like = like[:0]
        self._varies = rotary.rope_type in {"dynamic", "longrope"}
        self._known = (like[:0], like[:0])

    def at(self, positions: Tensor) -> Turn:
        """For rows at these positions."""
        if self._varies:
            return Turn(*self._compute(positions))
        last = int(positions.max())
        if last >= len(self._known[0]):
            self._known = self._compute(torch.arange(1 << (last + 1).bit_length(), device=positions.device))
        return Turn(*(each.index_select(0, positions) for each in self._known))

    def _compute(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        cosines, sines = (each[0][:, None] for each in self._rotary(self._like, position_ids=positions[None]))
        half = sines.shape[-1] // 2
        return cosines, torch.cat([-sines[..., :half], sines[..., half:]], -1)


def heads_of(model: Any) -> Heads:
    """Those of each of its layers."""
    config = model.config
    size = model.model.layers[0].self_attn.head_dim
    return Heads(queries=config.num_attention_heads, keys=config.num_key_value_heads, size=size)


def check(model: Any) -> None:
    """Raises Unknown unless this model is computed as the classes that were read are."""
    if type(model).__name__ not in CLASSES:
        raise Unknown(f"{type(model).__name__} is not among {', '.join(CLASSES)}")
    config = model.config
    if config.hidden_act != "silu":
        raise Unknown(f"its activation is {config.hidden_act}")
    if model.lm_head.bias is not None:
        raise Unknown("its head has a bias")
    if 2 * model.model.rotary_emb.inv_freq.shape[-1] != model.model.layers[0].self_attn.head_dim:
        raise Unknown("it rotates only a part of each head")
    for layer in model.model.layers:
        if others := {kind for module in layer.modules() if (kind := _foreign(module))}:
            raise Unknown(f"its layers have {', '.join(sorted(others))}")


def _foreign(module: nn.Module) -> str | None:
    """What replaced a module that transformers made: a quantised weight, an adapter."""
    name = type(module).__name__
    known = type(module) is nn.Linear or name.endswith(("RMSNorm", "Attention", "MLP", "DecoderLayer")) or name.startswith("SiLU")
    return None if known else name


def _window(attention: Any) -> int | None:
    """Mistral's attention asks its configuration, Qwen's was told."""
    owner = attention if hasattr(attention, "sliding_window") else attention.config
    window: int | None = getattr(owner, "sliding_window", None)
    return window


def _strip(modules: Iterable[nn.Linear]) -> None:
    """Let go of weights that were taken over."""
    for module in modules:
        module.weight = nn.Parameter(module.weight.new_empty(0), requires_grad=False)
