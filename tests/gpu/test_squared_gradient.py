from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

import truth
from tomfisher.ops import resolve, squared_gradient_

kernels = pytest.importorskip("tomfisher.kernels.squared_gradient")
tuning = pytest.importorskip("tomfisher.kernels.tuning")

DTYPES = [torch.bfloat16, torch.float16, torch.float32]
EPS = torch.finfo(torch.float32).eps
LENGTHS = [0, 1, 63, 64, 65, 200, 0]
GIB = 1 << 30
TENSOR_CORES = 2  # they truncate where the FPU rounds


def bounds_of(lengths: list[int]) -> list[tuple[int, int]]:
    return list(itertools.pairwise([0, *itertools.accumulate(lengths)]))


def check(F: Tensor, Y: Tensor, X: Tensor, bounds: list[tuple[int, int]]) -> None:
    truth.assert_squared_gradient(F, Y, X, bounds, TENSOR_CORES)


def operands(rows: int, d_out: int, d_in: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (torch.randn(rows, d, device="cuda").to(dtype) for d in (d_out, d_in))


def room(needed: int) -> None:
    if torch.cuda.mem_get_info()[0] < needed:
        pytest.skip(f"needs {needed / GIB:.0f} GiB of free GPU memory")


def test_auto_takes_triton() -> None:
    assert resolve("squared_gradient_", "auto", torch.device("cuda"))[0] == "triton"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("d_out", "d_in"),
    [(1, 1), (1, 133), (133, 1), (65, 17), (64, 64), (129, 127), (1024, 1600), (2048, 2048)],
)
def test_ragged_segments(dtype: torch.dtype, d_out: int, d_in: int) -> None:
    Y, X = operands(sum(LENGTHS), d_out, d_in, dtype)
    F = torch.zeros(d_out, d_in, device="cuda")
    squared_gradient_(F, Y, X, offsets=[0, *itertools.accumulate(LENGTHS)])
    check(F, Y, X, bounds_of(LENGTHS))


@pytest.mark.parametrize(
    ("dtype", "config"), [(dtype, config) for dtype in DTYPES for config in tuning.shipped(dtype)], ids=str
)
@pytest.mark.parametrize("splits", [1, 3])
def test_every_shipped_tile(dtype: torch.dtype, config: tuning.Config, splits: int) -> None:
    Y, X = operands(sum(LENGTHS), 288, 272, dtype)
    F = torch.zeros(288, 272, device="cuda")
    kernels.squared_gradient(F, Y, X, bounds_of(LENGTHS), config=config, splits=splits)
    check(F, Y, X, bounds_of(LENGTHS))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 100, 256, 512), (40, 7, 70, 34), (8, 128, 512, 384)])
def test_error_is_no_larger_than_eager_pytorch_in_the_same_dtype(
    dtype: torch.dtype, shape: tuple[int, int, int, int]
) -> None:
    B, T, d_out, d_in = shape
    Y, X = operands(B * T, d_out, d_in, dtype)
    bounds = bounds_of([T] * B)
    exact = truth.squared_gradient(Y, X, bounds)
    eager = sum((Y[a:b].T @ X[a:b]).square().double() for a, b in bounds)
    F = torch.zeros(d_out, d_in, device="cuda")
    squared_gradient_(F, Y.view(B, T, -1), X.view(B, T, -1))
    mine, theirs = (F.double() - exact).abs().max(), (eager - exact).abs().max()
    # the slack covers a different order of summation: a few roundings of the largest entry
    assert mine <= theirs + 8 * math.sqrt(T) * EPS * exact.max()


@pytest.mark.parametrize("dtype", DTYPES)
def test_padding_of_both_operands_is_never_used(dtype: torch.dtype) -> None:
    B, T, lengths = 4, 70, [70, 3, 0, 65]
    Y, X = torch.randn(B, T, 192, device="cuda").to(dtype), torch.randn(B, T, 256, device="cuda").to(dtype)
    for b, n in enumerate(lengths):
        Y[b, n:], X[b, n:] = math.nan, math.inf
    F = torch.zeros(192, 256, device="cuda")
    squared_gradient_(F, Y, X, lengths=lengths)
    check(F, Y.flatten(0, 1), X.flatten(0, 1), [(b * T, b * T + n) for b, n in enumerate(lengths)])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [37, 48, 160])
@pytest.mark.parametrize("splits", [1, 3])
def test_memory_around_F_and_beside_the_operands_is_left_alone(
    dtype: torch.dtype, width: int, splits: int
) -> None:
    guarded = torch.full((3, width, width), math.nan, device="cuda")
    F = guarded[1].zero_()
    wide = torch.full((60, 4 * 160), math.nan, device="cuda", dtype=dtype)
    Y, X = wide[5:55, 160 : 160 + width].normal_(), wide[5:55, 480 : 480 + width].normal_()
    bounds = [(0, 20), (20, 45), (45, 50)]
    kernels.squared_gradient(F, Y, X, bounds, splits=splits)
    check(F, Y, X, bounds)
    assert guarded[0].isnan().all() and guarded[2].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_transposed_sliced_and_expanded_operands(dtype: torch.dtype) -> None:
    Y = torch.randn(256, 80, device="cuda").to(dtype).T[::2]
    X = torch.randn(80, 500, device="cuda").to(dtype)[::2, 3:499:3]
    expanded = torch.randn(144, device="cuda").to(dtype).expand(40, 144)
    for y, x in ((Y, X), (Y, expanded), (expanded, X)):
        F = torch.zeros(y.shape[1], x.shape[1], device="cuda")
        squared_gradient_(F, y, x, offsets=[0, 17, 40])
        check(F, y, x, [(0, 17), (17, 40)])


@pytest.mark.parametrize("splits", [None, 1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_targets_say_which_slice_a_segment_adds_to(dtype: torch.dtype, splits: int | None) -> None:
    lengths, targets = [30, 0, 17, 64, 1, 90, 5], [2, 0, 4, 2, 0, 4, 4]
    Y, X = operands(sum(lengths), 160, 272, dtype)
    bounds = bounds_of(lengths)
    start = torch.rand(6, 160, 272, device="cuda")
    F = start.clone()
    kernels.squared_gradient(F, Y, X, bounds, targets, splits=splits)
    for e in range(6):
        mine = [b for b, t in zip(bounds, targets, strict=True) if t == e]
        slack = TENSOR_CORES * truth.squared_gradient_rounding(Y, X, mine) + 4 * EPS * F[e].double()
        assert ((F[e].double() - start[e].double() - truth.squared_gradient(Y, X, mine)).abs() <= slack).all()
        assert torch.equal(F[e], start[e]) == (e in (1, 3, 5))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(192, 320), (2048, 1024)])
def test_the_same_call_twice_gives_the_same_bits(dtype: torch.dtype, shape: tuple[int, int]) -> None:
    Y, X = operands(3000, *shape, dtype)
    offsets = [0, *itertools.accumulate([75] * 40)]
    results = [squared_gradient_(torch.zeros(shape, device="cuda"), Y, X, offsets=offsets) for _ in range(5)]
    assert all(torch.equal(results[0], other) for other in results[1:])


def test_float32_is_multiplied_exactly_unless_tf32_is_asked_for() -> None:
    Y, X = torch.full((16, 64), 1 + 2.0**-12, device="cuda"), torch.ones(16, 64, device="cuda")
    wanted = (16 * (1 + 2.0**-12)) ** 2
    exact, rounded = torch.zeros(64, 64, device="cuda"), torch.zeros(64, 64, device="cuda")
    squared_gradient_(exact, Y, X)
    assert ((exact.double() - wanted).abs() <= EPS * wanted).all()
    squared_gradient_(rounded, Y, X, precision="tf32")
    assert (rounded == 256).all(), "10 bits of mantissa have no room for 2^-12"
    split = torch.zeros(64, 64, device="cuda")
    squared_gradient_(split, Y, X, precision="tf32x3")
    assert ((split.double() - wanted).abs() <= 8 * EPS * wanted).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d_out", "d_in"), [(2048, 1024), (2047, 1024)])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_F_may_start_at_any_address(dtype: torch.dtype, d_out: int, d_in: int, start: int) -> None:
    Y, X = operands(sum(LENGTHS), d_out, d_in, dtype)
    memory = torch.full((d_out * d_in + 4,), math.nan, device="cuda")
    F = memory[start : start + d_out * d_in].view(d_out, d_in).zero_()
    squared_gradient_(F, Y, X, offsets=[0, *itertools.accumulate(LENGTHS)])
    check(F, Y, X, bounds_of(LENGTHS))
    assert memory[:start].isnan().all() and memory[start + d_out * d_in :].isnan().all()


def test_many_slices_with_split_samples() -> None:
    slices = 70_000
    Y, X = operands(2 * slices, 1, 1, torch.float32)
    F = torch.zeros(slices, 1, 1, device="cuda")
    bounds = [(n, n + 1) for n in range(2 * slices)]
    kernels.squared_gradient(F, Y, X, bounds, [n // 2 for n in range(2 * slices)], splits=2)
    wanted = (Y.double() * X.double()).square().view(slices, 2).sum(1)
    assert ((F.flatten().double() - wanted).abs() <= 4 * EPS * wanted).all()


def test_F_beyond_2_to_the_31_entries() -> None:
    d_out, d_in = 65_536 + 16, 32_768 + 16
    room(5 * d_out * d_in)
    Y, X = operands(70, d_out, d_in, torch.bfloat16)
    F = torch.zeros(d_out, d_in, device="cuda")
    squared_gradient_(F, Y, X, offsets=[0, 30, 70])
    for rows in (slice(0, 64), slice(d_out - 64, d_out)):
        check(F[rows], Y[:, rows], X, [(0, 30), (30, 70)])


def test_operands_beyond_2_to_the_31_entries() -> None:
    rows, d_out, d_in = 1 << 18, 64, 8192 + 16
    room(3 * rows * d_in)
    Y = torch.randn(rows, d_out, device="cuda", dtype=torch.bfloat16)
    X = torch.empty(rows, d_in, device="cuda", dtype=torch.bfloat16).normal_()
    F = torch.zeros(d_out, d_in, device="cuda")
    squared_gradient_(F, Y, X, offsets=[rows - 150, rows])
    check(F, Y, X, [(rows - 150, rows)])


def test_the_tuner_leaves_F_alone() -> None:
    Y, X = operands(512, 256, 256, torch.bfloat16)
    F = torch.full((256, 256), math.nan, device="cuda")
    assert kernels.tune(F, Y, X, bounds_of([128] * 4)) in tuning.shipped(torch.bfloat16)
    assert F.isnan().all()
