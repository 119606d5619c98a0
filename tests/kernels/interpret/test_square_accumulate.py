from __future__ import annotations

import math

import pytest
import torch

from tomfisher.ops import square_accumulate_

kernels = pytest.importorskip("tomfisher.kernels.square_accumulate")

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EPS = torch.finfo(torch.float32).eps
SIZES = [0, 1, 7, kernels.BLOCK + 1, kernels.CHUNK - 1, kernels.CHUNK, 2 * kernels.CHUNK + 77]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [0, 1])  # 1: addresses that are not multiples of 16 bytes
def test_adds_the_square_no_worse_than_eager(dtype: torch.dtype, shift: int) -> None:
    F = [torch.rand(size + shift)[shift:] for size in SIZES]
    gradients = [torch.randn(size + shift).to(dtype)[shift:] for size in SIZES]
    exact = [f.double() + g.double() ** 2 for f, g in zip(F, gradients, strict=True)]
    eager = [f + g.float() ** 2 for f, g in zip(F, gradients, strict=True)]
    square_accumulate_(F, gradients, impl="triton")
    for got, plain, want in zip(F, eager, exact, strict=True):
        error, allowed = (got.double() - want).abs(), (plain.double() - want).abs()
        assert (error <= 4 * EPS * want).all()  # g, the square and the sum are each rounded once
        if len(want):
            assert error.max() <= allowed.max() + EPS * want.max()


def test_dtypes_and_layouts_in_one_call() -> None:
    base = torch.zeros(4, 6)
    F = [torch.zeros(3, 5), base[:, ::2], torch.zeros(5, 3).t(), torch.zeros(())]
    gradients = [
        torch.randn(5, 3).t(),
        torch.randn(4, 3).half(),
        torch.randn(3, 5).bfloat16(),
        torch.tensor(3.0),
    ]
    square_accumulate_(F, gradients, impl="triton")
    for got, gradient in zip(F, gradients, strict=True):
        assert torch.equal(got, gradient.float() ** 2)
    assert not base[:, 1::2].any()


def test_many_tensors_as_a_model_has_them() -> None:
    F = [torch.zeros(3 + i) for i in range(40)]
    gradients = [torch.full((3 + i,), float(i)) for i in range(40)]
    square_accumulate_(F, gradients, impl="triton")
    assert all(bool((f == i * i).all()) for i, f in enumerate(F))


def test_what_lies_beyond_a_tensor_is_neither_read_nor_written() -> None:
    F, gradient = torch.full((300,), math.nan), torch.full((300,), math.nan)
    F[100:-100], gradient[100:-100] = 1.0, 2.0
    square_accumulate_([F[100:-100]], [gradient[100:-100]], impl="triton")
    assert F[100:-100].tolist() == [5.0] * 100 and int(F.isnan().sum()) == 200


def test_squares_that_underflow_in_float16_survive_and_no_subnormal_becomes_zero() -> None:
    F = [torch.zeros(3), torch.zeros(3)]
    square_accumulate_(F, [torch.full((3,), 1e-4).half(), torch.full((3,), 1e-21)], impl="triton")
    assert (F[0] > 0.9e-8).all()
    assert torch.equal(F[1], torch.full((3,), 1e-21).square())


def test_twice_the_same_bits() -> None:
    gradients = [torch.randn(kernels.CHUNK + 3), torch.randn(17).half()]
    runs = []
    for _ in range(2):
        F = [torch.full((len(g),), 0.25) for g in gradients]
        square_accumulate_(F, gradients, impl="triton")
        runs.append(F)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
