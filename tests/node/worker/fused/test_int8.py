"""int8 weights: near the ones they were made of, and the same whatever else is computed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from node.worker.fused.int8 import Int8, Quantized, quantized, quantizes
from node.worker.fused.linear import Own, Plain

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(not quantizes(), reason="this processor or this torch cannot compute with int8 weights")


def matrices(outputs: int = 96, width: int = 64) -> tuple[torch.Tensor, ...]:
    source = torch.Generator().manual_seed(outputs)
    return tuple(torch.randn(size, generator=source) for size in ((outputs, width), (outputs,), (33, width), (33, outputs)))


@pytest.fixture
def forgetful() -> Iterator[None]:
    quantizes.cache_clear()
    yield
    quantizes.cache_clear()


def test_no_weight_is_off_by_more_than_half_a_step() -> None:
    weight, *_ = matrices()
    weight[3] = 0.0
    weight[5, 0] = 90.0
    before = weight.clone()
    rounded, scales = quantized(weight)
    assert rounded.dtype == torch.int8
    assert int(rounded[torch.arange(96) != 3].abs().amax(1).min()) == 127
    assert bool(((rounded * scales[:, None] - weight).abs() <= scales[:, None] * 0.501).all())
    assert torch.equal(weight, before)


def test_a_weight_of_many_rows_is_rounded_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, *_ = matrices()
    whole = quantized(weight)
    monkeypatch.setattr("node.worker.fused.int8._ROWS", 7)
    parts = quantized(weight)
    assert all(torch.equal(one, other) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"])
def test_every_product_is_that_of_the_rounded_weight(dtype: torch.dtype) -> None:
    weight, bias, rows, other = (each.to(dtype) for each in matrices())
    rounded, scales = quantized(weight)
    made, plain = Int8(weight, bias), Plain(rounded * scales[:, None], bias.float())
    bound = {torch.float32: 2e-3, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    for name, arguments in (("__call__", (rows,)), ("swish", (rows,)), ("times", (rows, other)), ("plus", (rows, other))):
        found, expected = getattr(made, name)(*arguments), getattr(plain, name)(*(each.float() for each in arguments))
        assert found.dtype == dtype
        torch.testing.assert_close(found.float(), expected, atol=bound, rtol=0.01)


def test_gate_and_up_in_one_product_are_what_they_are_in_two() -> None:
    gate, up = torch.nn.Linear(64, 96), torch.nn.Linear(64, 96)
    _, _, rows, _ = matrices()
    with torch.inference_mode():
        expected = Own().gated(gate, up)(rows)
        torch.testing.assert_close(Quantized().gated(gate, up)(rows), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(("outputs", "width"), [(96, 64), (1, 64), (5, 3), (300, 2048)])
def test_a_row_is_the_same_alone_and_on_any_number_of_threads(outputs: int, width: int) -> None:
    weight, bias, rows, _ = matrices(outputs, width)
    made = Int8(weight, bias)
    together = made(rows)
    threads = torch.get_num_threads()
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            assert torch.equal(made(rows), together)
            assert torch.equal(torch.cat([made(row[None]) for row in rows]), together)
    finally:
        torch.set_num_threads(threads)


def test_an_outlier_takes_no_digits_from_the_rest_of_its_row() -> None:
    weight, _, rows, _ = matrices()
    rows[:, 7] *= 100.0
    weight[:, 7] = 0.0
    rounded, scales = quantized(weight)
    found, expected = Int8(weight)(rows), rows @ (rounded * scales[:, None]).T
    # With 8 bits for the row, most of its values would be 0.
    assert float((found - expected).norm() / expected.norm()) < 0.005


def test_zeros_stay_and_what_is_not_a_number_is_seen() -> None:
    weight, _, rows, _ = matrices()
    rows[0], rows[1, 4] = 0.0, float("nan")
    found = Int8(weight)(rows)
    assert not found[0].any()
    assert bool(found[1].isnan().all())
    assert not found[2:].isnan().any()


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError])
def test_an_operator_that_is_missing_or_has_changed_is_noticed(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise error("no such operator")

    monkeypatch.setattr(Int8, "product", refuse)
    assert not quantizes()


@pytest.mark.usefixtures("forgetful")
def test_sums_that_are_cut_off_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    product = Int8.product
    monkeypatch.setattr(Int8, "product", lambda self, rows: product(self, rows).clamp(max=250.0))
    assert not quantizes()
