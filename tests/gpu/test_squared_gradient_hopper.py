from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import truth

kernels = pytest.importorskip("tomfisher.kernels.squared_gradient_hopper")
base = pytest.importorskip("tomfisher.kernels.squared_gradient")

pytestmark = pytest.mark.unverified
DTYPES = [torch.bfloat16, torch.float16]
LENGTHS = [0, 1, 63, 64, 65, 200, 0, 129]
TENSOR_CORES = 2  # they truncate where the FPU rounds


@pytest.fixture(autouse=True)
def _hopper() -> None:
    if torch.cuda.get_device_capability()[0] != 9:
        pytest.skip("needs a Hopper GPU")


def bounds_of(lengths: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise([0, *itertools.accumulate(lengths)]))


def operands(rows: int, d_out: int, d_in: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    Y, X = (torch.randn(rows, d, device="cuda").to(dtype) for d in (d_out, d_in))
    return Y, X


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d_out", "d_in"), [(1, 16), (64, 64), (129, 208), (1000, 1600), (4096, 1024)])
def test_ragged_segments(dtype: torch.dtype, d_out: int, d_in: int) -> None:
    Y, X = operands(sum(LENGTHS), d_out, d_in, dtype)
    F = torch.zeros(d_out, d_in, device="cuda")
    kernels.squared_gradient(F, Y, X, bounds_of(LENGTHS))
    truth.assert_squared_gradient(F, Y, X, bounds_of(LENGTHS), TENSOR_CORES)


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_of_both_operands_is_never_used(dtype: torch.dtype) -> None:
    Y, X = operands(4 * 70, 256, 192, dtype)
    bounds = [(70 * n, 70 * n + rows) for n, rows in enumerate([70, 3, 0, 65])]
    for start, stop in bounds:
        Y[stop : start + 70], X[stop : start + 70] = math.nan, math.inf
    F = torch.zeros(256, 192, device="cuda")
    kernels.squared_gradient(F, Y, X, bounds)
    truth.assert_squared_gradient(F, Y, X, bounds, TENSOR_CORES)


def test_targets_and_slices_that_are_not_written() -> None:
    Y, X = operands(600, 160, 208, torch.bfloat16)
    F = torch.zeros(5, 160, 208, device="cuda")
    kernels.squared_gradient(F, Y, X, bounds_of([100] * 6), [3, 0, 3, 1, 0, 3])
    for slice_, mine in ((3, [0, 2, 5]), (0, [1, 4]), (1, [3])):
        bounds = [(100 * n, 100 * n + 100) for n in mine]
        truth.assert_squared_gradient(F[slice_], Y, X, bounds, TENSOR_CORES)
    assert not F[2].any() and not F[4].any()


def test_many_segments_split_among_programs_and_the_same_bits_each_time() -> None:
    Y, X = operands(9000, 128, 192, torch.bfloat16)
    bounds = bounds_of([75] * 120)
    results = []
    for _ in range(5):
        F = torch.zeros(128, 192, device="cuda")
        kernels.squared_gradient(F, Y, X, bounds)
        results.append(F)
    truth.assert_squared_gradient(results[0], Y, X, bounds, TENSOR_CORES)
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_it_adds_to_what_is_there_and_agrees_with_the_other_kernel() -> None:
    Y, X = operands(512, 384, 576, torch.bfloat16)
    bounds = bounds_of([128] * 4)
    start = torch.rand(384, 576, device="cuda")
    mine, other = start.clone(), start.clone()
    kernels.squared_gradient(mine, Y, X, bounds)
    base.squared_gradient(other, Y, X, bounds)
    slack = 2 * TENSOR_CORES * truth.squared_gradient_rounding(Y, X, bounds) + 4 * truth.EPS * other.double()
    assert ((mine.double() - other.double()).abs() <= slack).all() and not torch.equal(mine, start)


def test_what_it_does_not_take_is_refused() -> None:
    Y, X = operands(4, 32, 32, torch.float32)
    with pytest.raises(TypeError, match="bfloat16 and float16 only"):
        kernels.squared_gradient(torch.zeros(32, 32, device="cuda"), Y, X, [(0, 4)])
    Y, X = operands(4, 32, 33, torch.bfloat16)
    with pytest.raises(ValueError, match="got a d_in of 33"):
        kernels.squared_gradient(torch.zeros(32, 33, device="cuda"), Y, X, [(0, 4)])
