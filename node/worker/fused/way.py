"""Which way of computing a model is the fastest here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from node.worker.fused.decoder import Decoder, Unknown
from node.worker.fused.int8 import Quantized
from node.worker.fused.linear import packs
from node.worker.fused.modules import pack
from node.worker.runner import ModuleForward

if TYPE_CHECKING:
    from node.worker.runner import Forward


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
    try:
        return Way("fused", Decoder(model))
    except Unknown:
        pack(model)
        return Way("packed", ModuleForward(model))


def int8(model: Any) -> Way:
    """With all linear layers in int8, the head among them; embeddings, norms and fused experts stay as they are.

    Takes the model's weights over. For the CPU, and where `node.worker.fused.int8.quantizes`.
    """
    try:
        return Way("fused-int8", Decoder(model, Quantized()))
    except Unknown:
        pack(model, Quantized())
        return Way("packed-int8", ModuleForward(model))
