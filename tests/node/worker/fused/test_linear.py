"""Packed products: the same as torch's, and only where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from node.worker.fused import linear as module
from node.worker.fused.linear import Packed, Plain, linear, packs
from node.worker.fused.modules import PackedLinear, pack

packed_only = pytest.mark.skipif(not packs(torch.float32), reason="this torch has no oneDNN")


def matrices(rows: int) -> tuple[torch.Tensor, ...]:
    source = torch.Generator().manual_seed(rows)
    return tuple(torch.randn(size, generator=source) for size in ((96, 64), (96,), (rows, 64), (rows, 96)))


@packed_only
@pytest.mark.parametrize("rows", [1, 4, 33])
def test_every_product_is_that_of_torch(rows: int) -> None:
    weight, bias, inputs, other = matrices(rows)
    packed, plain = Packed(weight, bias), Plain(weight, bias)
    for name, arguments in (("__call__", (inputs,)), ("swish", (inputs,)), ("times", (inputs, other)), ("plus", (inputs, other))):
        found, expected = getattr(packed, name)(*arguments), getattr(plain, name)(*arguments)
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@packed_only
def test_an_operator_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Packed, "plus", lambda self, rows, other: self(rows))
    packs.cache_clear()
    try:
        assert not packs(torch.float32)
        assert isinstance(linear(torch.ones(4, 4)), Plain)
    finally:
        packs.cache_clear()


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_an_operator_that_is_missing_or_has_changed_is_not_used(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise error("no such operator")

    monkeypatch.setattr(module.Packed, "__init__", refuse)
    packs.cache_clear()
    try:
        assert not packs(torch.float32)
    finally:
        packs.cache_clear()


@packed_only
def test_modules_are_replaced_and_give_the_same() -> None:
    class Own(nn.Linear):
        pass

    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Sequential(nn.Linear(16, 4, bias=False)), Own(4, 4))
    inputs = torch.randn(2, 3, 8)
    with torch.no_grad():
        expected = model(inputs)
        pack(model)
        found = model(inputs)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert [type(each) for each in model.modules() if isinstance(each, nn.Linear | PackedLinear)] == [
        PackedLinear, PackedLinear, Own,
    ]  # fmt: skip
