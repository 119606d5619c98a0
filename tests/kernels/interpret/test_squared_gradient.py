from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import truth
from tomfisher.ops import squared_gradient_

kernels = pytest.importorskip("tomfisher.kernels.squared_gradient")
tuning = pytest.importorskip("tomfisher.kernels.tuning")

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
EPS = torch.finfo(torch.float32).eps
LENGTHS = [0, 1, 63, 64, 65, 200, 0]
SMALL = tuning.Config(16, 16, 16, 4, 2)


def bounds_of(lengths: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise([0, *itertools.accumulate(lengths)]))


def operands(rows: int, d_out: int, d_in: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, d_out).to(dtype), torch.randn(rows, d_in).to(dtype)


class Launches:
    """Grids and keyword arguments with which a kernel is launched from now on; it still runs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
        self.grids: list[tuple[int, ...]] = []
        self.options: list[dict[str, Any]] = []
        self._kernel = getattr(kernels, kernel)
        monkeypatch.setattr(kernels, kernel, self)

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        def run(*arguments: Any, **options: Any) -> None:
            self.grids.append(grid)
            self.options.append(options)
            self._kernel[grid](*arguments, **options)

        return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d_out", "d_in"), [(1, 1), (1, 133), (133, 1), (65, 17), (64, 64), (129, 127), (128, 144), (192, 66)]
)
def test_ragged_segments(dtype: torch.dtype, d_out: int, d_in: int) -> None:
    Y, X = operands(sum(LENGTHS), d_out, d_in, dtype)
    bounds = bounds_of(LENGTHS)
    F = torch.zeros(d_out, d_in)
    squared_gradient_(F, Y, X, offsets=[0, *itertools.accumulate(LENGTHS)], impl="triton")
    truth.assert_squared_gradient(F, Y, X, bounds)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("config", [*tuning.shipped(torch.float32), *tuning.shipped(torch.float16)])
def test_every_shipped_tile(dtype: torch.dtype, config: tuning.Config) -> None:
    Y, X = operands(sum(LENGTHS), 145, 139, dtype)
    F = torch.zeros(145, 139)
    kernels.squared_gradient(F, Y, X, bounds_of(LENGTHS), config=config)
    truth.assert_squared_gradient(F, Y, X, bounds_of(LENGTHS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 100, 33, 29), (40, 7, 70, 34), (5, 64, 16, 80)])
def test_error_is_no_larger_than_eager_pytorch_in_the_same_dtype(
    dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    B, T, d_out, d_in = shape
    Y, X = operands(B * T, d_out, d_in, dtype)
    bounds = bounds_of([T] * B)
    exact = truth.squared_gradient(Y, X, bounds)
    eager = sum((Y[a:b].T @ X[a:b]).square().double() for a, b in bounds)
    F = torch.zeros(d_out, d_in)
    squared_gradient_(F, Y.view(B, T, -1), X.view(B, T, -1), impl="triton")
    mine, theirs = (F.double() - exact).abs().max(), (eager - exact).abs().max()
    # the slack covers a different order of summation: a few roundings of the largest entry
    assert mine <= theirs + 8 * math.sqrt(T) * EPS * exact.max()


def test_it_adds_to_what_is_there_as_the_reference_does() -> None:
    Y, X = operands(90, 40, 50, torch.float32)
    F = torch.rand(40, 50)
    expected = F.clone()
    squared_gradient_(F, Y, X, offsets=[0, 20, 90], impl="triton")
    squared_gradient_(expected, Y, X, offsets=[0, 20, 90], impl="reference")
    slack = 2 * truth.squared_gradient_rounding(Y, X, [(0, 20), (20, 90)]) + 2 * EPS * expected.double()
    assert ((F - expected).abs() <= slack).all()
    assert not torch.equal(F, torch.zeros_like(F))


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_of_both_operands_is_never_used(dtype: torch.dtype) -> None:
    B, T, lengths = 4, 70, [70, 3, 0, 65]
    Y, X = torch.randn(B, T, 48).to(dtype), torch.randn(B, T, 32).to(dtype)
    for b, n in enumerate(lengths):
        Y[b, n:], X[b, n:] = math.nan, math.inf
    F = torch.zeros(48, 32)
    squared_gradient_(F, Y, X, lengths=lengths, impl="triton")
    truth.assert_squared_gradient(
        F, Y.flatten(0, 1), X.flatten(0, 1), [(b * T, b * T + n) for b, n in enumerate(lengths)]
    )


@pytest.mark.parametrize("splits", [1, 3])
def test_memory_around_F_and_beside_the_operands_is_left_alone(splits: int) -> None:
    guarded = torch.full((3, 37, 21), math.nan)
    F = guarded[1].zero_()
    wide_Y, wide_X = torch.full((60, 96), math.nan), torch.full((60, 64), math.nan)
    Y, X = wide_Y[5:55, 16:53].normal_(), wide_X[5:55, 16:37].normal_()
    kernels.squared_gradient(F, Y, X, [(0, 20), (20, 45), (45, 50)], config=SMALL, splits=splits)
    truth.assert_squared_gradient(F, Y, X, [(0, 20), (20, 45), (45, 50)])
    assert guarded[0].isnan().all() and guarded[2].isnan().all()


@pytest.mark.parametrize("width", [16, 48])
def test_columns_beside_a_view_that_is_read_without_a_copy(width: int) -> None:
    wide_Y, wide_X = torch.full((33, 128), math.nan), torch.full((33, 96), math.nan)
    Y, X = wide_Y[:, 32 : 32 + width].normal_(), wide_X[:, 16 : 16 + width].normal_()
    assert kernels.aligned_rows(Y) is Y and kernels.aligned_rows(X) is X
    F = torch.zeros(width, width)
    kernels.squared_gradient(F, Y, X, [(0, 10), (10, 33)])
    truth.assert_squared_gradient(F, Y, X, [(0, 10), (10, 33)])


@pytest.mark.parametrize("dtype", DTYPES)
def test_transposed_sliced_and_expanded_operands(dtype: torch.dtype) -> None:
    Y = torch.randn(64, 80).to(dtype).T[::2]
    X = torch.randn(80, 100).to(dtype)[::2, 3:99:3]
    expanded = torch.randn(48).to(dtype).expand(40, 48)
    for y, x in ((Y, X), (Y, expanded), (expanded, X)):
        F = torch.zeros(y.shape[1], x.shape[1])
        squared_gradient_(F, y, x, offsets=[0, 17, 40], impl="triton")
        truth.assert_squared_gradient(F, y, x, [(0, 17), (17, 40)])


def test_rows_of_any_other_floating_dtype_are_rounded_as_the_definition_says() -> None:
    Y, X = torch.randn(30, 20, dtype=torch.float64), torch.randn(30, 24, dtype=torch.float64)
    F = torch.zeros(20, 24)
    squared_gradient_(F, Y, X, offsets=[0, 13, 30], impl="triton")
    truth.assert_squared_gradient(F, Y.float(), X.float(), [(0, 13), (13, 30)])


@pytest.mark.parametrize("splits", [None, 1, 2, 5])
@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_say_which_slice_a_segment_adds_to(dtype: torch.dtype, splits: int | None) -> None:
    lengths, targets = [30, 0, 17, 64, 1, 9, 5], [2, 0, 4, 2, 0, 4, 4]
    Y, X = operands(sum(lengths), 35, 18, dtype)
    bounds = bounds_of(lengths)
    start = torch.rand(6, 35, 18)
    F = start.clone()
    kernels.squared_gradient(F, Y, X, bounds, targets, config=SMALL, splits=splits)
    for e in range(6):
        mine = [b for b, t in zip(bounds, targets, strict=True) if t == e]
        slack = truth.squared_gradient_rounding(Y, X, mine) + 4 * EPS * F[e].double()
        assert ((F[e].double() - start[e].double() - truth.squared_gradient(Y, X, mine)).abs() <= slack).all()
        assert torch.equal(F[e], start[e]) == (e in (1, 3, 5))


@pytest.mark.parametrize("splits", [None, 1, 3])
@pytest.mark.parametrize("targets", [None, [2, 0, 4, 2, 0, 4, 4]])
def test_segments_in_tensors_give_the_bits_of_those_in_lists(
    targets: list[int] | None, splits: int | None
) -> None:
    lengths = [30, 0, 17, 64, 1, 0, 5]
    Y, X = operands(sum(lengths), 35, 18, torch.float16)
    bounds = bounds_of(lengths)
    F = torch.rand(35, 18) if targets is None else torch.rand(6, 35, 18)
    expected = F.clone()
    kernels.squared_gradient(expected, Y, X, bounds, targets, config=SMALL, splits=splits)
    there = None if targets is None else torch.tensor(targets)
    kernels.squared_gradient(F, Y, X, torch.tensor(bounds), there, config=SMALL, splits=splits)
    assert torch.equal(F, expected) and not torch.equal(F, torch.zeros_like(F))


def test_the_operation_hands_tensors_on_and_checks_them_without_the_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lengths, targets = [30, 0, 17, 64, 1, 9, 5], torch.tensor([2, 0, 4, 2, 0, 4, 4])
    Y, X = operands(sum(lengths), 35, 18, torch.float32)
    offsets = [0, *itertools.accumulate(lengths)]
    there = torch.tensor(offsets)
    expected = squared_gradient_(
        torch.zeros(5, 35, 18), Y, X, offsets=offsets, targets=targets.tolist(), impl="triton"
    )
    monkeypatch.setattr(Tensor, "tolist", lambda tensor: pytest.fail("waits for the GPU"))
    F = squared_gradient_(torch.zeros(5, 35, 18), Y, X, offsets=there, targets=targets, impl="triton")
    assert torch.equal(F, expected)
    kept = F.clone()
    for o, t, message in (
        (there.flip(0), targets, "offsets must rise"),
        (there + 1, targets, "offsets must rise"),
        (there - 1, targets, "offsets must rise"),
        (there, targets + 1, "targets must be between 0 and 4"),
        (there, targets - 1, "targets must be between 0 and 4"),
    ):
        with pytest.raises(RuntimeError, match=message):
            squared_gradient_(F, Y, X, offsets=o, targets=t, impl="triton")
    for o, t in ((there[:-1], targets), (there[:0], None)):
        with pytest.raises(ValueError, match="one number more than there are segments"):
            squared_gradient_(F if t is not None else F[0], Y, X, offsets=o, targets=t, impl="triton")
    assert torch.equal(F, kept)


@pytest.mark.parametrize("splits", [1, 2])
def test_a_slice_without_segments_keeps_what_it_has(splits: int) -> None:
    Y, X = operands(20, 35, 18, torch.float32)
    F = torch.zeros(3, 35, 18)
    kept = F[1].normal_().clone()
    kernels.squared_gradient(F, Y, X, [(0, 8), (8, 20)], [0, 2], config=SMALL, splits=splits)
    assert torch.equal(F[1], kept)
    truth.assert_squared_gradient(F[0], Y, X, [(0, 8)])
    truth.assert_squared_gradient(F[2], Y, X, [(8, 20)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("splits", [2, 7, 9])  # 9: more than there are segments
def test_split_samples(dtype: torch.dtype, splits: int) -> None:
    lengths = [3, 90, 1, 17, 40, 0, 22]
    Y, X = operands(sum(lengths), 33, 47, dtype)
    F = torch.zeros(33, 47)
    kernels.squared_gradient(F, Y, X, bounds_of(lengths), config=SMALL, splits=splits)
    truth.assert_squared_gradient(F, Y, X, bounds_of(lengths))


@pytest.mark.parametrize("splits", [1, 4])
def test_the_same_call_twice_gives_the_same_bits(splits: int) -> None:
    Y, X = operands(200, 70, 52, torch.float32)
    bounds, first, second = bounds_of([50] * 4), torch.zeros(70, 52), torch.zeros(70, 52)
    for F in (first, second):
        kernels.squared_gradient(F, Y, X, bounds, splits=splits)
    assert torch.equal(first, second)


def test_the_tile_shape_does_not_change_a_single_bit_of_a_small_product() -> None:
    Y, X = (torch.randint(-8, 9, (60, d)).float() for d in (70, 52))
    results = []
    for config in tuning.shipped(torch.float32):
        F = torch.zeros(70, 52)
        kernels.squared_gradient(F, Y, X, bounds_of([25, 35]), config=config)
        results.append(F)
    assert all(torch.equal(F, truth.squared_gradient(Y, X, bounds_of([25, 35])).float()) for F in results)


def test_no_row_and_no_column() -> None:
    F = torch.ones(4, 3)
    squared_gradient_(F, torch.empty(0, 4), torch.empty(0, 3), impl="triton")
    squared_gradient_(F, torch.randn(6, 4), torch.randn(6, 3), offsets=[2, 2, 2], impl="triton")
    squared_gradient_(torch.empty(0, 3), torch.empty(6, 0), torch.randn(6, 3), impl="triton")
    assert torch.equal(F, torch.ones(4, 3))


def test_less_than_exact_products_are_something_one_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    made = {v.on_cuda["PRECISION"] for v in kernels.variants() if v.dtype == "fp32" and v.on_cuda}
    assert made == set(kernels.PRECISIONS)
    launches = Launches(monkeypatch, "squared_gradient_kernel")
    Y, X = operands(64, 32, 32, torch.float32)
    for asked, precision in (({}, "ieee"), ({"precision": "tf32"}, "tf32"), ({"precision": "ieee"}, "ieee")):
        squared_gradient_(torch.zeros(32, 32), Y, X, impl="triton", **asked)
        assert launches.options[-1]["PRECISION"] == precision
    squared_gradient_(torch.zeros(32, 32), Y.half(), X.half(), impl="triton", precision="tf32")
    assert launches.options[-1]["PRECISION"] == "ieee" and len(launches.options) == 4


@pytest.mark.parametrize("precision", kernels.PRECISIONS)
def test_on_the_cpu_every_precision_is_exact(precision: str) -> None:
    Y, X = operands(70, 20, 24, torch.float32)
    results = [
        squared_gradient_(torch.zeros(20, 24), Y, X, offsets=[0, 13, 70], impl="triton", precision=chosen)
        for chosen in ("ieee", precision)
    ]
    assert torch.equal(*results)


def test_no_grid_dimension_but_the_first_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others end at 65,535, and there may be more slices than that."""
    products = Launches(monkeypatch, "squared_gradient_kernel")
    sums = Launches(monkeypatch, "add_parts_kernel")
    Y, X = operands(60, 40, 50, torch.float32)
    F = torch.zeros(3, 40, 50)
    kernels.squared_gradient(F, Y, X, bounds_of([10] * 6), [0, 1, 2] * 2, config=SMALL, splits=2)
    assert len(sums.grids) == len(products.grids) == 1
    assert {len(grid) for grid in sums.grids + products.grids} == {1}


def test_an_F_that_starts_anywhere_takes_a_tile_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    launches = Launches(monkeypatch, "squared_gradient_kernel")
    Y, X = operands(4, 2048, 1024, torch.float16)
    memory = torch.zeros(2048 * 1024 + 1)
    assert memory.data_ptr() % 16 == 0
    for start, warps in ((0, 8), (1, 4)):
        F = memory[start:][: 2048 * 1024].view(2048, 1024).zero_()
        squared_gradient_(F, Y, X, impl="triton")
        truth.assert_squared_gradient(F, Y, X, [(0, 4)])
        assert launches.options[-1]["num_warps"] == warps


def test_what_is_tuned_on_float64_is_found_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    launches = Launches(monkeypatch, "squared_gradient_kernel")

    def seconds(call: Callable[[], None]) -> float:
        call()
        return float(launches.options[-1]["BLOCK_OUT"] != 128)

    monkeypatch.setattr("triton.testing.do_bench", seconds)
    Y, X = torch.randn(30, 40, dtype=torch.float64), torch.randn(30, 64, dtype=torch.float64)
    F = torch.zeros(40, 64)
    tuning._tuned.cache_clear()
    try:
        kernels.squared_gradient(F, Y, X, [(0, 30)])
        assert launches.options[-1]["BLOCK_OUT"] == 64
        assert kernels.tune(F, Y, X, [(0, 30)], save=True).block_out == 128
        kernels.squared_gradient(F, Y, X, [(0, 30)])
        assert launches.options[-1]["BLOCK_OUT"] == 128
    finally:
        tuning._tuned.cache_clear()


def test_more_columns_than_offsets_inside_a_tile_reach_are_refused() -> None:
    wide = 2**23 + 1
    F, Y, X = torch.empty(wide, 1), torch.empty(1, wide), torch.empty(1, 1)
    with pytest.raises(ValueError, match="at most 8388608 columns of an operand, got 8388609"):
        kernels.squared_gradient(F, Y, X, [(0, 1)])


def test_more_rows_than_the_tables_number_are_refused() -> None:
    F, Y, X = torch.zeros(1, 1), torch.empty(1, 1).expand(2**31, 1), torch.empty(1, 1).expand(2**31, 1)
    with pytest.raises(ValueError, match="at most 2147483647 rows in one call, got 2147483648"):
        kernels.squared_gradient(F, Y, X, [(0, 1)])
