"""Products of a few rows with a weight that oneDNN packed, in float32 or bfloat16; see `node.worker.fused.linear.Linear`.

1. For more than `MOST_ROWS` the weight's own product is taken: both read the same copy of the weight.
2. How oneDNN lays weights out is not documented: each is looked at before it is read.
"""

from __future__ import annotations

import ctypes
import functools
from typing import TYPE_CHECKING

import torch

from node.worker.fused.linear import Own, Packed, linear
from node.worker.native.compiler import Unavailable, library
from node.worker.native.kernels import TYPES

if TYPE_CHECKING:
    from torch import Tensor

    from node.worker.fused.linear import Linear

MOST_ROWS = 64
PANEL = 64
"""As in products.c."""
_PLAIN, _SWISH, _TIMES, _PLUS = range(4)
_UNARY = {"none": _PLAIN, "swish": _SWISH}
_BINARY = {"mul": _TIMES, "add": _PLUS}

_POINTER, _INTEGER, _CHOICE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


def _functions(dtype: torch.dtype) -> ctypes.CDLL:
    made = _made(dtype)
    if isinstance(made, Unavailable):
        raise Unavailable(str(made))
    return made


@functools.cache
def _made(dtype: torch.dtype) -> ctypes.CDLL | Unavailable:
    """What cannot be compiled is not tried again in this process."""
    if dtype not in TYPES:
        return Unavailable(f"there are no products for {dtype}")
    try:
        made = library("products", f"TYPE={TYPES[dtype]}")
    except Unavailable as reason:
        return reason
    made.product.argtypes = [*[_POINTER] * 5, *[_INTEGER] * 3, *[_CHOICE] * 2]
    made.product.restype = None
    return made


class FewRows(Packed):
    """See Linear. Raises Unavailable when the weight does not lie as it must."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__(weight, bias)
        self._functions = _functions(weight.dtype)
        self.outputs, self.inputs = weight.shape
        self.address = _address(self._weight, weight)

    def _unary(self, rows: Tensor, what: str) -> Tensor:
        return super()._unary(rows, what) if len(rows) > MOST_ROWS else self._product(rows, _UNARY[what], None)

    def _binary(self, rows: Tensor, other: Tensor, what: str) -> Tensor:
        return super()._binary(rows, other, what) if len(rows) > MOST_ROWS else self._product(rows, _BINARY[what], other)

    def _product(self, rows: Tensor, what: int, other: Tensor | None) -> Tensor:
        rows, other = rows.contiguous(), None if other is None else other.contiguous()
        made = rows.new_empty(len(rows), self.outputs)
        self._functions.product(
            made.data_ptr(),
            rows.data_ptr(),
            self.address,
            None if self.bias is None else self.bias.data_ptr(),
            None if other is None else other.data_ptr(),
            len(rows),
            self.inputs,
            self.outputs,
            what,
            torch.get_num_threads(),
        )
        return made


class Native(Own):
    """See `node.worker.fused.linear.Products`. Raises Unavailable where there are none for this type."""

    def __init__(self, dtype: torch.dtype) -> None:
        _functions(dtype)
        FewRows(torch.zeros(PANEL, PANEL, dtype=dtype))

    def linear(self, weight: Tensor, bias: Tensor | None = None) -> Linear:
        """See Products."""
        try:
            return FewRows(weight, bias)
        except Unavailable:
            return linear(weight, bias)


def _address(packed: Tensor, weight: Tensor) -> int:
    """Where the packed weight lies. Raises Unavailable when it is not what products.c reads."""
    outputs, inputs = weight.shape
    together = 4 // weight.dtype.itemsize
    if outputs % PANEL or inputs % together:
        raise Unavailable(f"{outputs} outputs of {inputs} inputs are no whole panels")
    try:
        address, size = int(torch.ops.mkldnn.data_ptr(packed)), int(torch.ops.mkldnn._nbytes(packed))
    except (AttributeError, RuntimeError, TypeError) as error:
        raise Unavailable("this torch does not say where oneDNN keeps weights") from error
    if size != weight.nbytes:
        raise Unavailable(f"oneDNN makes {size} bytes of {weight.nbytes}")
    memory = torch.frombuffer((ctypes.c_char * size).from_address(address), dtype=weight.dtype)
    found = memory.view(-1, inputs // together, PANEL, together)
    expected = weight.detach().reshape(-1, PANEL, inputs // together, together).transpose(1, 2)
    if not all(torch.equal(found[panel], expected[panel]) for panel in (0, -1)):
        raise Unavailable("oneDNN lays weights out in another way")
    return address
