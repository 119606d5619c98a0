from __future__ import annotations

import math

import pytest
import torch

from bits import DTYPES, bits, random_bits
from tomfisher.ops import scatter_

kernels = pytest.importorskip("tomfisher.kernels.scatter")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [0, 1, kernels.ENTRIES - 1, kernels.ENTRIES, kernels.ENTRIES + 1])
def test_writes_these_bits_there_and_nothing_else(dtype: torch.dtype, count: int) -> None:
    base = random_bits((40, 70), dtype)
    weights = [
        random_bits((2000,), dtype, 1),
        base,
        random_bits((50, 41), dtype, 2).t(),
        base.clone()[:, ::2],
    ]
    indices = [torch.randperm(weight.numel())[:count] for weight in weights]
    values = [random_bits((count,), dtype, 3 + i) for i in range(len(weights))]
    expected = [bits(weight).flatten().clone() for weight in weights]
    for wanted, index, value in zip(expected, indices, values, strict=True):
        wanted[index] = bits(value)
    scatter_(weights, indices, values, impl="triton")
    assert all(torch.equal(bits(w).flatten(), wanted) for w, wanted in zip(weights, expected, strict=True))


def test_dtypes_and_empty_tensors_in_one_call() -> None:
    weights = [torch.zeros(3, dtype=dtype) for dtype in DTYPES] + [torch.empty(0)]
    indices = [torch.tensor([2, 0])] * 4 + [torch.empty(0, dtype=torch.int64)]
    values = [torch.tensor([1.0, 2.0], dtype=dtype) for dtype in DTYPES] + [torch.empty(0)]
    scatter_(weights, indices, values, impl="triton")
    assert [weight.tolist() for weight in weights[:4]] == [[2.0, 0.0, 1.0]] * 4


def test_strided_index_and_values() -> None:
    weight = torch.zeros(10)
    scatter_([weight], [torch.tensor([1, 0, 3, 0, 5])[::2]], [torch.arange(6.0)[1::2]], impl="triton")
    assert weight.tolist() == [0, 1, 0, 3, 0, 5, 0, 0, 0, 0]


def test_memory_around_a_weight_is_left_alone() -> None:
    memory = torch.full((100,), math.nan)
    scatter_([memory[30:40]], [torch.arange(10)], [torch.ones(10)], impl="triton")
    assert int(memory.isfinite().sum()) == 10 and bool((memory[30:40] == 1).all())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_write_is_seen_by_the_version_counter(mode) -> None:
    weight = torch.nn.Parameter(torch.zeros(4))
    version = weight._version
    with mode():
        scatter_([weight], [torch.tensor([1])], [torch.ones(1)], impl="triton")
    assert weight._version > version
