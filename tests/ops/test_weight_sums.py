from __future__ import annotations

import math

import pytest
import torch

import truth
from bits import DTYPES
from tomfisher.ops import weight_sums

pytestmark = pytest.mark.usefixtures("on_cpu")

BOUND = 2.0**-47  # of the absolute sum


def adversaries(count: int) -> dict[str, torch.Tensor]:
    """Data on which long chains of additions lose most."""
    normal = torch.randn(count, dtype=torch.float64)
    return {
        "normal": normal,
        "sorted": normal.sort().values,
        "one large": torch.cat([torch.tensor([2.0**40], dtype=torch.float64), normal[1:].abs() * 1e-6]),
        "cancelling": torch.cat([normal[: count // 2], -normal[: count - count // 2]]),
        "thirds": torch.full((count,), 1 / 3, dtype=torch.float64),
    }


@pytest.mark.parametrize("count", [1, 3, 16_384, 262_145, 700_001])
def test_error_is_within_the_stated_bound(count: int) -> None:
    cases = adversaries(count)
    for name, row, weight in zip(
        cases, weight_sums(list(cases.values())).tolist(), cases.values(), strict=True
    ):
        total, absolute = truth.weight_sums(weight)
        assert abs(row[0] - total) <= BOUND * absolute, name
        assert abs(row[1] - absolute) <= BOUND * absolute, name


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_and_layout(dtype: torch.dtype) -> None:
    base = torch.randn(60, 50).to(dtype)
    weights = [base, base.t(), base[:, ::3], base[7], base[3, 3], base[:0]]
    got = weight_sums(weights)
    assert got.dtype == torch.float64 and got.shape == (6, 2)
    for row, weight in zip(got.tolist(), weights, strict=True):
        total, absolute = truth.weight_sums(weight)
        assert row[0] == pytest.approx(total, rel=0, abs=BOUND * absolute)
        assert row[1] == pytest.approx(absolute, rel=1e-14)


def test_bits_depend_neither_on_threads_nor_on_the_rest_of_the_list() -> None:
    weights = [torch.randn(300_001), torch.randn(70_001).double(), torch.randn(9)]
    alone = torch.cat([weight_sums([weight]) for weight in weights])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(weight_sums(weights), alone)
            assert torch.equal(weight_sums(weights[::-1]).flip(0), alone)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_non_finite_entry_shows(bad: float) -> None:
    (row, good) = weight_sums([torch.tensor([1.0, bad, 2.0]), torch.ones(2)])
    assert not row.isfinite().any()
    assert good.tolist() == [2.0, 2.0]


def test_a_parameter_is_read_without_autograd() -> None:
    got = weight_sums([torch.nn.Parameter(torch.tensor([1.0, -3.0]))])
    assert got.tolist() == [[-2.0, 4.0]] and not got.requires_grad


def test_empty_list_and_refusals() -> None:
    assert weight_sums([]).shape == (0, 2)
    with pytest.raises(TypeError, match=r"weights\[1\] must be float16.*torch\.int64"):
        weight_sums([torch.ones(2), torch.arange(3)])
    with pytest.raises(ValueError, match=r"one device, got weights\[1\] on meta"):
        weight_sums([torch.ones(2), torch.ones(2, device="meta")])
    with pytest.raises(ValueError, match="impl must be"):
        weight_sums([torch.ones(2)], impl="fast")  # type: ignore[arg-type]
