from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tomfisher.ops import resolve, square_accumulate_

pytest.importorskip("tomfisher._C")
LEVELS = ["scalar", "avx2"]
HERE = LEVELS[
    : 1 + ["scalar", "avx2", "avx512", "avx512bf16", "amx"].index(torch.ops.tomfisher_cpp.cpu_isa())
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
EPS = torch.finfo(torch.float32).eps


def check(F: Tensor, before: Tensor, gradient: Tensor) -> None:
    g = gradient.float().double()  # float64 is rounded once
    exact = before.double() + g.square()
    # the square and the sum are rounded once each, or both in one go
    assert ((F.double() - exact).abs() <= EPS * exact + 2.0**-149).all()


@pytest.mark.parametrize("isa", HERE)
@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 200), min_size=1, max_size=4),
    dtype=st.sampled_from(DTYPES),
    offset=st.integers(0, 3),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_adds_the_square_in_float32(isa, lengths, dtype, offset, threads, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    F = [torch.rand(n + offset + 2, generator=generator) for n in lengths]
    gradients = [torch.randn(n + offset, generator=generator).to(dtype)[offset:] for n in lengths]
    before = [f.clone() for f in F]
    inner = [f[offset : offset + n] for f, n in zip(F, lengths, strict=True)]
    torch.ops.tomfisher_cpp.square_accumulate_(inner, gradients, threads, isa)
    for f, old, gradient, n in zip(F, before, gradients, lengths, strict=True):
        check(f[offset : offset + n], old[offset : offset + n], gradient)
        assert torch.equal(f[:offset], old[:offset]) and torch.equal(f[offset + n :], old[offset + n :])


@pytest.mark.parametrize("isa", HERE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_and_threads_change_no_bit(isa, dtype) -> None:
    F = [torch.rand(100_003), torch.rand(5), torch.rand(32_768)]
    gradients = [torch.randn(f.shape).to(dtype) for f in F]
    results = []
    for threads in (1, 2, 3, 4):
        mine = [f.clone() for f in F]
        torch.ops.tomfisher_cpp.square_accumulate_(mine, gradients, threads, isa)
        results.append(mine)
    for f, gradient, *mine in zip(F, gradients, *results, strict=True):
        check(mine[0], f, gradient)
        assert all(torch.equal(mine[0], other) for other in mine[1:])


@pytest.mark.parametrize("isa", HERE)
def test_every_finite_float16_is_squared_in_float32(isa: str) -> None:
    gradient = torch.arange(-(1 << 15), 1 << 15).to(torch.int16).view(torch.float16)
    gradient = gradient[torch.isfinite(gradient)]
    F = torch.zeros(gradient.numel())
    torch.ops.tomfisher_cpp.square_accumulate_([F], [gradient], 2, isa)
    assert torch.equal(F, gradient.float().square())


def test_the_public_operation_runs_it_with_any_strides() -> None:
    assert resolve("square_accumulate_", "auto", torch.device("cpu"))[0] == "cpp"
    base = torch.rand(4, 6)
    before, gradient = base.clone(), torch.randn(3, 4).t()
    square_accumulate_([base[:, ::2]], [gradient], impl="cpp")
    check(base[:, ::2], before[:, ::2], gradient)
    assert torch.equal(base[:, 1::2], before[:, 1::2])


@pytest.mark.parametrize(
    ("F", "gradient", "message"),
    [
        (torch.zeros(4).double(), torch.ones(4), "F float32"),
        (torch.zeros(4), torch.ones(5), "of one size"),
        (torch.zeros(4, 4).t(), torch.ones(4, 4), "contiguous"),
        (torch.zeros(4), torch.ones(4, dtype=torch.int32), "must be float16"),
    ],
)
def test_what_could_reach_out_of_bounds_is_refused_once_more(F, gradient, message) -> None:
    first = torch.zeros(2)
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tomfisher_cpp.square_accumulate_([first, F], [torch.ones(2), gradient], 1)
    assert not first.any()


def test_opcheck() -> None:
    F, gradients = [torch.zeros(3, 4), torch.zeros(2)], [torch.randn(3, 4), torch.randn(2).half()]
    torch.library.opcheck(torch.ops.tomfisher.square_accumulate_.default, (F, gradients, "cpp"))
