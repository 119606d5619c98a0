from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import truth
from bits import DTYPES
from tomfisher.ops import weight_sums

kernels = pytest.importorskip("tomfisher.kernels.weight_sums")

BOUND = 2.0**-47  # of the absolute sum
SIZES = [0, 1, 5, kernels.BLOCK + 1, kernels.CHUNK - 1, kernels.CHUNK, 2 * kernels.CHUNK + 77]


def check(got: Tensor, weights: list[Tensor]) -> None:
    for row, weight in zip(got.tolist(), weights, strict=True):
        total, absolute = truth.weight_sums(weight)
        assert abs(row[0] - total) <= BOUND * absolute
        assert abs(row[1] - absolute) <= BOUND * absolute


@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_around_blocks_and_chunks(dtype: torch.dtype) -> None:
    weights = [torch.randn(size).to(dtype) for size in SIZES]
    check(weight_sums(weights, impl="triton"), weights)


def test_layouts_dtypes_and_unaligned_addresses_in_one_call() -> None:
    base = torch.randn(60, 50)
    weights = [base, base.half().t(), base[:, ::3], base.bfloat16()[7], base.flatten()[1:2500], base.double()]
    check(weight_sums(weights, impl="triton"), weights)


def test_what_lies_beyond_a_tensor_is_not_read() -> None:
    memory = torch.full((kernels.CHUNK + 300,), math.nan)
    memory[100:-100] = 1.0
    (row,) = weight_sums([memory[100:-100]], impl="triton")
    assert row.tolist() == [kernels.CHUNK + 100.0] * 2


def test_twice_the_same_bits_whatever_the_list() -> None:
    weights = [torch.randn(kernels.CHUNK * 2 + 5), torch.randn(700).half(), torch.randn(9)]
    first = weight_sums(weights, impl="triton")
    assert torch.equal(weight_sums(weights[::-1], impl="triton").flip(0), first)
    assert torch.equal(torch.cat([weight_sums([w], impl="triton") for w in weights]), first)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_entry_shows(bad: float) -> None:
    poisoned, good = torch.ones(kernels.CHUNK + 9), torch.ones(3)
    poisoned[kernels.CHUNK + 2] = bad
    got = weight_sums([poisoned, good], impl="triton")
    assert not got[0].isfinite().any() and got[1].tolist() == [3.0, 3.0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("share", [0.0, 1e-3, 0.3, 0.99])
def test_sums_without_some_entries(dtype: torch.dtype, share: float) -> None:
    weights, indices, kept = [], [], []
    for size in (3, 900) if share > 0.1 else (3, kernels.BLOCK + 1, kernels.CHUNK + 77):
        weight = torch.randn(size).to(dtype)
        index = torch.randperm(size)[: int(share * size)].sort().values
        weight[index] = math.nan
        weights.append(weight)
        indices.append(index)
        kept.append(weight[torch.isfinite(weight)])
    check(kernels.sums_without(weights, indices), kept)


def test_entries_at_the_edges_of_blocks_are_left_out() -> None:
    size = kernels.CHUNK + kernels.BLOCK + 5
    edges = [0, kernels.BLOCK - 1, kernels.BLOCK, kernels.CHUNK - 1, kernels.CHUNK, size - 1]
    weight = torch.ones(size)
    weight[edges] = 1e30
    (row,) = kernels.sums_without([weight], [torch.tensor(edges)])
    assert row.tolist() == [size - 6.0] * 2
