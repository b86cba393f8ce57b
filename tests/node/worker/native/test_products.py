"""Products of few rows in C: those of torch, and the same in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from node.worker.fused.linear import Packed, Plain
from node.worker.native.compiler import Unavailable
from node.worker.native.products import MOST_ROWS, FewRows, Native

BOUND = {torch.float32: 1e-4, torch.bfloat16: 0.02}


pytestmark = pytest.mark.usefixtures("threads")


def matrices(rows: int, dtype: torch.dtype, *, inputs: int = 192, outputs: int = 320) -> tuple[torch.Tensor, ...]:
    source = torch.Generator().manual_seed(rows)
    weight = torch.randn(outputs, inputs, generator=source) * inputs**-0.5
    sizes = ((outputs,), (rows, inputs), (rows, outputs))
    return tuple(each.to(dtype) for each in (weight, *(torch.randn(size, generator=source) for size in sizes)))


def every(kind: Any, rows: torch.Tensor, other: torch.Tensor) -> list[torch.Tensor]:
    return [kind(rows), kind.swish(rows), kind.times(rows, other), kind.plus(rows, other)]


@pytest.mark.parametrize("rows", [1, 2, 5, 6, 7, 33, MOST_ROWS, MOST_ROWS + 1])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("inputs", "outputs"), [(192, 320), (64, 64), (1088, 128)])
def test_every_product_is_that_of_torch(rows: int, biased: bool, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    weight, bias, given, other = matrices(rows, dtype, inputs=inputs, outputs=outputs)
    made = FewRows(weight, bias if biased else None)
    expected = Plain(weight.float(), bias.float() if biased else None)
    for found, exact in zip(every(made, given, other), every(expected, given.float(), other.float()), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), exact, atol=BOUND[dtype], rtol=BOUND[dtype])


def test_a_row_is_the_same_to_the_last_bit_in_any_company(dtype: torch.dtype) -> None:
    weight, bias, given, other = matrices(MOST_ROWS, dtype)
    made = FewRows(weight, bias)
    together = every(made, given, other)
    for row in range(0, MOST_ROWS, 7):
        alone = every(made, given[row : row + 1], other[row : row + 1])
        assert all(torch.equal(one[0], many[row]) for one, many in zip(alone, together, strict=True))


def test_rows_need_not_lie_together(dtype: torch.dtype) -> None:
    weight, _, given, other = matrices(8, dtype)
    made = FewRows(weight)
    assert torch.equal(made.plus(given[::2], other[::2]), made.plus(given, other)[::2])


def test_what_is_not_finite_stays_so(dtype: torch.dtype) -> None:
    weight, _, given, other = matrices(4, dtype)
    given[1, 3], given[2, 5] = float("nan"), float("inf")
    for found in every(FewRows(weight), given, other):
        assert found.isfinite().all(-1).tolist() == [True, False, False, True]


def test_large_arguments_of_the_sigmoid(dtype: torch.dtype) -> None:
    weight = torch.eye(64, dtype=dtype)
    given = torch.tensor([-300.0, -90, -20, -1, 0, 1, 20, 90, 300]).to(dtype)[:, None].expand(-1, 64)
    torch.testing.assert_close(FewRows(weight).swish(given), torch.nn.functional.silu(given), atol=1e-6, rtol=BOUND[dtype])


def test_a_weight_that_lies_otherwise_is_oneDNNs(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:  # noqa: N802 - its name
    weight, _, _, _ = matrices(3, dtype)
    products, other = Native(dtype), Packed(weight.flip(0))
    elsewhere = torch.ops.mkldnn.data_ptr(other._weight)
    monkeypatch.setattr(torch.ops.mkldnn, "data_ptr", lambda _: elsewhere)
    with pytest.raises(Unavailable, match="another way"):
        FewRows(weight)
    assert type(products.linear(weight)) is Packed


def test_a_torch_that_does_not_say_where_weights_are_computes_them_itself(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    weight, _, _, _ = matrices(3, dtype)
    products = Native(dtype)

    def refuse(_: torch.Tensor) -> int:
        raise AttributeError("no such operator")

    monkeypatch.setattr(torch.ops.mkldnn, "data_ptr", refuse)
    assert type(products.linear(weight)) is Packed


@pytest.mark.parametrize(("outputs", "inputs"), [(100, 64), (64, 33), (128, 80)])
def test_parts_of_panels_are_oneDNNs(outputs: int, inputs: int, dtype: torch.dtype) -> None:  # noqa: N802 - its name
    weight = torch.ones(outputs, inputs, dtype=dtype)
    made = Native(dtype).linear(weight)
    torch.testing.assert_close(made(weight), weight @ weight.T)
    if outputs == 100:
        assert type(made) is Packed


def test_other_types_are_refused() -> None:
    with pytest.raises(Unavailable, match="float16"):
        Native(torch.float16)
