"""Steps of few rows and no prompts through all layers in one call; see `node.worker.fused.layers.Through`."""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

import torch

from node.worker.fused.kernels import NativeKernels
from node.worker.fused.linear import Gated
from node.worker.native.compiler import Unavailable, library
from node.worker.native.kernels import TYPES
from node.worker.native.products import MOST_ROWS, FewRows

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from node.worker.attention import StepContext
    from node.worker.fused.kernels import Turn
    from node.worker.fused.layers import Layer, Layers
    from node.worker.fused.linear import Linear

_POINTER, _INTEGER, _REAL, _THREADS = ctypes.c_void_p, ctypes.c_int64, ctypes.c_float, ctypes.c_int


class _Linear(ctypes.Structure):
    """As in layers.c, like the two below."""

    _fields_ = (("weight", _POINTER), ("bias", _POINTER), ("inputs", _INTEGER), ("outputs", _INTEGER))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _POINTER) for name in ("before_attention", "head_norm", "before_mlp")),
        *((name, _Linear) for name in ("projection", "output", "gate", "up", "down")),
        ("scaling", _REAL),
        ("window", _INTEGER),
    )


class _Shape(ctypes.Structure):
    _fields_ = (*((name, _INTEGER) for name in ("layers", "dim", "heads", "kv_heads", "size", "inner")), ("epsilon", _REAL))


@functools.cache
def _function(dtype: torch.dtype) -> Callable[..., None]:
    made = library("layers", f"TYPE={TYPES[dtype]}").layers
    made.argtypes = [*[_POINTER] * 6, _INTEGER, *[_POINTER] * 4, *[_INTEGER] * 2, _THREADS]
    made.restype = None
    return made


class NativeLayers:
    """Other steps go through the layers as they are. Raises Unavailable unless all their products can be read from C."""

    def __init__(self, layers: Layers) -> None:
        if not isinstance(layers.kernels, NativeKernels):
            raise Unavailable("norms and attention are not in C")
        self._function = _function(layers.layers[0].before_attention.dtype)
        self._layers = layers
        self._each = (_Layer * len(layers.layers))(*map(_layer, layers.layers))
        first = self._each[0]
        heads = layers.layers[0].attention.heads
        self._shape = _Shape(
            len(self._each), first.down.outputs, heads.queries, heads.keys, heads.size, first.down.inputs, layers.epsilon
        )
        shape = self._shape
        self._room = shape.dim + (3 * heads.queries + 2 * heads.keys) * heads.size + 2 * shape.inner
        self._windows = {layer.attention.layer: layer.attention.window for layer in layers.layers}
        self._pointers = ctypes.addressof(shape), ctypes.addressof(self._each)

    def __call__(self, rows: Tensor, turn: Turn, step: StepContext) -> Tensor:
        """See Through."""
        count, arena = len(rows), step.arena
        if step.pieces or step.lengths or count > MOST_ROWS:
            return self._layers(rows, turn, step)
        room = rows.new_empty(count * self._room)
        self._function(
            rows.data_ptr(), room.data_ptr(), *self._pointers,
            arena.keys.data_ptr(), arena.values.data_ptr(), arena.keys.shape[2],
            turn.cosines.data_ptr(), turn.sines.data_ptr(), step.places.data_ptr(), step.positions.data_ptr(),
            count, step.decoding, torch.get_num_threads(),
        )  # fmt: skip
        step.windows.update(self._windows)
        return rows


def _layer(layer: Layer) -> _Layer:
    if not isinstance(layer.gated, Gated):
        raise Unavailable("the products of the gate and what it gates are one")
    attention = layer.attention
    return _Layer(
        layer.before_attention.data_ptr(),
        None if attention.norm is None else attention.norm.data_ptr(),
        layer.before_mlp.data_ptr(),
        *map(_linear, (layer.projection, layer.output, layer.gated.gate, layer.gated.up, layer.down)),
        attention.scaling,
        attention.window or 0,
    )


def _linear(product: Linear) -> _Linear:
    if not isinstance(product, FewRows):
        raise Unavailable("not all products are in C")
    return _Linear(product.address, None if product.bias is None else product.bias.data_ptr(), product.inputs, product.outputs)
