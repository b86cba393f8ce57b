"""All layers in one call give what the same kernels give one by one, to the last bit."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen3Config, Qwen3ForCausalLM

from node.worker.attention import Piece, StepContext
from node.worker.cache.arena import Arena, ArenaShape
from node.worker.fused.decoder import Decoder, heads_of
from node.worker.fused.int8 import Quantized, quantizes
from node.worker.fused.kernels import NativeKernels
from node.worker.fused.linear import Own
from node.worker.fused.way import fastest
from node.worker.native.compiler import Unavailable
from node.worker.native.layers import NativeLayers
from node.worker.native.products import MOST_ROWS, Native
from tests.node.worker.decoding import decoding_group

if TYPE_CHECKING:
    from node.worker.fused.layers import Layers, Through


SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "llama with biases": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)),
    "mistral with a window": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=5)),
    "qwen 3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES)),
}
CAPACITY = 32
MANY = 70


def made(name: str, dtype: torch.dtype) -> Any:
    torch.manual_seed(4)
    model = MODELS[name]().to(dtype).eval()
    for parameter in model.parameters():
        # Norms and biases begin as ones and zeros, which would hide a mistake.
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.7, 0.3)
    return model


class Counted:
    """Layers as they are, with a count of the steps that they get."""

    def __init__(self, layers: Layers) -> None:
        self.steps = 0
        self._layers = layers

    def __call__(self, *arguments: Any) -> torch.Tensor:
        self.steps += 1
        return self._layers(*arguments)


def step(rows: int, padding: int, dtype: torch.dtype, *, piece: bool) -> tuple[torch.Tensor, StepContext, torch.Tensor]:
    """Decoding rows, then a piece of a prompt or rows of nobody."""
    source = torch.Generator().manual_seed(rows)
    shape = ArenaShape(layers=3, tokens=(MANY + 1) * CAPACITY, kv_heads=2, head_dim=32)
    arena = Arena(shape, dtype=dtype, device=torch.device("cpu"))
    for tensor in (arena.keys, arena.values):
        tensor.copy_(torch.randn(tensor.shape, generator=source))
    positions = [(7 * row) % CAPACITY for row in range(rows)]
    places = [row * CAPACITY + position for row, position in enumerate(positions)]
    group = decoding_group(CAPACITY, list(range(rows)), positions)
    pieces = [Piece(MANY * CAPACITY, rows, padding, 3)] if piece else []
    places += range(MANY * CAPACITY + 3, MANY * CAPACITY + 3 + padding) if piece else [arena.scrap] * padding
    tokens = torch.randint(0, 128, (rows + padding,), generator=source)
    context = StepContext(
        arena=arena,
        places=torch.tensor(places),
        positions=torch.tensor(positions + list(range(3, 3 + padding))),
        groups=[group],
        pieces=pieces,
    )
    return tokens, context, torch.arange(rows + padding * piece)


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize(
    ("rows", "padding", "piece", "whole"),
    [(1, 3, False, True), (9, 0, False, True), (MOST_ROWS, 0, False, True), (MANY, 0, False, False), (3, 6, True, False)],
    ids=["one", "some", "most", "too many", "with a prompt"],
)
def test_logits_and_cache_are_the_same(name: str, rows: int, padding: int, piece: bool, whole: bool, dtype: torch.dtype) -> None:
    model = made(name, dtype)
    kernels, products = NativeKernels(dtype, heads_of(model)), Native(dtype)
    counted: list[Counted] = []

    def through(layers: Layers) -> Through:
        counted.append(Counted(layers))
        native = NativeLayers(layers)
        native._layers = counted[0]  # type: ignore[assignment]
        return native

    slow, fast = Decoder(copy.deepcopy(model), products, kernels), Decoder(model, products, kernels, through)
    found, caches = [], []
    for decoder in (slow, fast):
        tokens, context, kept = step(rows, padding, dtype, piece=piece)
        with torch.inference_mode():
            found.append(decoder(tokens, context, kept))
        caches.append(context.arena)
        assert context.windows == dict.fromkeys(range(3), 5 if "window" in name else None)
    assert torch.equal(*found)
    assert torch.equal(caches[0].keys[:, :, :-1], caches[1].keys[:, :, :-1])
    assert torch.equal(caches[0].values[:, :, :-1], caches[1].values[:, :, :-1])
    assert counted[0].steps == (0 if whole else 1)


def test_a_model_that_fits_is_computed_so(dtype: torch.dtype, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert fastest(made("qwen 3", dtype)).name == "fused C C products"
    assert not caplog.text


@pytest.mark.parametrize("products", [Own, Quantized])
def test_other_products_are_refused(products: Any, dtype: torch.dtype) -> None:
    if products is Quantized and not quantizes():
        pytest.skip("this processor has no VNNI")
    model = made("qwen 3", dtype)
    with pytest.raises(Unavailable, match="products"):
        Decoder(model, products(), NativeKernels(dtype, heads_of(model)), NativeLayers)


def test_other_kernels_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(Unavailable, match="not in C"):
        Decoder(made("llama", dtype), Native(dtype), None, NativeLayers)
