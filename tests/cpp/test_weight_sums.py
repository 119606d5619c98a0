from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import truth
from bits import DTYPES
from tomfisher.ops import resolve
from tomfisher.ops.weight_sums import weight_sums

pytest.importorskip("tomfisher._C")
LEVELS = ["scalar", "avx2", "avx512"]
HERE = LEVELS[
    : 1 + ["scalar", "avx2", "avx512", "avx512bf16", "amx"].index(torch.ops.tomfisher_cpp.cpu_isa())
]
ROW, BLOCK = 512, 512 * 128


def run(weights: list[Tensor], isa: str = "", threads: int = 2) -> Tensor:
    return torch.ops.tomfisher_cpp.weight_sums(weights, threads, isa)


def random(length: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    return torch.randn(length, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check(sums: Tensor, weight: Tensor) -> None:
    total, absolute = truth.weight_sums(weight)
    # the documented bound: 64 roundings of float64
    assert abs(sums[0].item() - total) <= 2.0**-47 * absolute
    assert abs(sums[1].item() - absolute) <= 2.0**-47 * absolute


@pytest.mark.parametrize("isa", HERE)
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 1200), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    offset=st.integers(0, 3),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_sums_are_within_the_documented_bound(isa, lengths, dtype, offset, threads, seed) -> None:
    weights = [random(n + offset, dtype, seed + i)[offset:] for i, n in enumerate(lengths)]
    for got, weight in zip(run(weights, isa, threads), weights, strict=True):
        check(got, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", [ROW - 1, ROW, ROW + 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 700])
def test_bits_depend_on_neither_threads_nor_instruction_set_nor_neighbours(dtype, length) -> None:
    weight, other = random(length, dtype), random(1000, dtype, 1)
    alone = run([weight], HERE[-1], 1)[0]
    check(alone, weight)
    for isa in HERE:
        for threads in (1, 2, 3, 4):
            assert torch.equal(run([other, weight, other], isa, threads)[1], alone)


def test_cancellation_and_wild_magnitudes_stay_within_the_bound() -> None:
    x = random(30_000, torch.float64) * torch.logspace(-100, 100, 30_000, dtype=torch.float64)
    check(run([torch.cat([x, -x.flip(0), x[:7]])])[0], torch.cat([x, -x.flip(0), x[:7]]))
    ones = torch.full((1 << 20,), 1.0 + 2**-23)
    assert run([ones]).tolist() == [[(1 << 20) * (1.0 + 2**-23)] * 2]


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_finite_16_bit_number_is_read_right(isa, dtype) -> None:
    if dtype.itemsize == 2:
        values = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(dtype)
        values = values[torch.isfinite(values)]
    else:
        values = torch.tensor([1e-45, -1e-40, 3.4e38, -0.0, 7.0, 2.0**-130], dtype=torch.float64).to(dtype)
    weights = list(values.split(1))
    expected = torch.stack([values.double(), values.double().abs()], 1)
    assert torch.equal(run(weights, isa), expected)


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows(isa, dtype, bad) -> None:
    for position in (0, 600, 1199):
        weights = [random(1200, dtype), random(1200, dtype)]
        weights[1][position] = bad
        sums = run(weights, isa)
        assert sums[0].isfinite().all() and not sums[1].isfinite().any()


def test_the_public_operation_runs_it_and_takes_any_strides() -> None:
    assert resolve("weight_sums", "auto", torch.device("cpu"))[0] == "cpp"
    base = random(600, torch.float32).view(20, 30)
    views = [base, base.t(), base[:, ::3], base[3], torch.empty(0, 3), torch.tensor(5.0).half()]
    for got, view in zip(weight_sums(views, impl="cpp"), views, strict=True):
        check(got, view)
    with pytest.raises(RuntimeError, match="contiguous"):
        run([base.t()])


def test_opcheck() -> None:
    weights = [torch.randn(3, 4), torch.randn(7).half()]
    torch.library.opcheck(torch.ops.tomfisher.weight_sums.default, (weights, "cpp"))
