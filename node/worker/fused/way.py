"""Which way of computing a model is the fastest here."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from node.worker.fused.decoder import Decoder, Unknown, check, heads_of
from node.worker.fused.int8 import Quantized
from node.worker.fused.kernels import NativeKernels
from node.worker.fused.linear import Own, packs
from node.worker.fused.modules import pack
from node.worker.native.compiler import Unavailable
from node.worker.native.layers import NativeLayers
from node.worker.native.products import Native
from node.worker.runner import ModuleForward

if TYPE_CHECKING:
    import torch

    from node.worker.fused.kernels import Heads
    from node.worker.fused.layers import Layers, Through
    from node.worker.fused.linear import Products
    from node.worker.runner import Forward

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Way:
    """`name` is part of what two nodes must have in common to give the same tokens."""

    name: str
    forward: Forward


def modules(model: Any) -> Way:
    """By transformers alone. Leaves the model as it is."""
    return Way("modules", ModuleForward(model))


def fastest(model: Any) -> Way:
    """Takes over the model's weights: afterwards nothing but this computes it."""
    if model.device.type != "cpu" or not packs(model.dtype):
        return modules(model)
    products = _products(model.dtype)
    return _taken_over(model, products, "C products" if isinstance(products, Native) else "")


def int8(model: Any) -> Way:
    """With all linear layers in int8, the head among them; embeddings, norms and fused experts stay as they are.

    Takes the model's weights over. For the CPU, and where `node.worker.fused.int8.quantizes`.
    """
    return _taken_over(model, Quantized(), "int8")


def _taken_over(model: Any, products: Products, *notes: str) -> Way:
    try:
        check(model)
    except Unknown:
        pack(model, products)
        return _way(ModuleForward(model), "packed", *notes)
    kernels = _kernels(model.dtype, heads_of(model))
    return _way(Decoder(model, products, kernels, _through), "fused", "C" if kernels else "", *notes)


def _way(forward: Forward, *names: str) -> Way:
    return Way(" ".join(name for name in names if name), forward)


def _products(dtype: torch.dtype) -> Products:
    try:
        return Native(dtype)
    except Unavailable as reason:
        _logger.info("products of few rows are oneDNN's: %s", reason)
        return Own()


def _kernels(dtype: torch.dtype, heads: Heads) -> NativeKernels | None:
    try:
        return NativeKernels(dtype, heads)
    except Unavailable as reason:
        _logger.info("norms and attention are torch's: %s", reason)
        return None


def _through(layers: Layers) -> Through:
    try:
        return NativeLayers(layers)
    except Unavailable as reason:
        _logger.info("the layers are called one by one: %s", reason)
        return layers
